"""Where images go: S3."""
