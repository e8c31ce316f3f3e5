"""A gateway with TLS and an S3 server, for benchmarks of whole tasks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import certifi

from benchmarks.one_image import Child, make_certificate


def start_servers(stack: ExitStack, home: Path, image_bytes: int) -> tuple[Child, Path]:
    """Start both servers until ``stack`` closes; return their process and a CA bundle that trusts the gateway."""
    certificate, key = make_certificate(home)
    bundle = home / "bundle.pem"
    bundle.write_bytes(Path(certifi.where()).read_bytes() + certificate.read_bytes())
    options = ("--certificate", str(certificate), "--key", str(key), "--image-bytes", str(image_bytes))
    return stack.enter_context(Child("_campaign_servers", *options)), bundle


def s3_extra(port: int) -> dict[str, Any]:
    """Return the extra of the AWS connection to an S3 server on loopback."""
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "region_name": "us-east-1",
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
