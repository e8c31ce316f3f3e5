"""Benchmarks of this package and of alternatives. Run them from the checkout; README.md describes them."""
