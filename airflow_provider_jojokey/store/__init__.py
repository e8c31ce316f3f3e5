"""Store images, receipts and budgets in S3, and received images on the local disk."""
