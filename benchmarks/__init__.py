"""Measurements of what this package costs, beside what else there is. Run them from the checkout."""
