"""Images from JojoKey's IMG2 API in Apache Airflow: each paid once, stored in S3, accounted for."""

from __future__ import annotations

__version__ = "0.1.0"
