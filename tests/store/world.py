"""Buckets under the names that tests of other folders import."""

from __future__ import annotations

from .buckets import BUCKET, IMPATIENT, Bucket, bucket_of, moto_bucket

__all__ = ["BUCKET", "IMPATIENT", "Bucket", "bucket_of", "moto_bucket"]
