"""Third-party clients and servers; ``make test-foreign`` installs them and runs these tests."""
