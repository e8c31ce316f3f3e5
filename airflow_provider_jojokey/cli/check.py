"""``airflow jojokey check``: test whether images can be generated and stored."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cli.console import FAILED, USAGE, CommandFailed, command, say, show
from airflow_provider_jojokey.cost import Cost
from airflow_provider_jojokey.exceptions import JojoKeyBaseUrlError, JojoKeyError
from airflow_provider_jojokey.img2.errors import identifiers

if TYPE_CHECKING:
    import argparse

    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.request import ImageRequest

OK, FAILURE, UNKNOWN = "ok", "failed", "unknown"
PROMPT = "a" * 300
"""A prompt of common length, for the estimate of the remaining images."""


@command
def check(options: argparse.Namespace) -> int:
    """Print the checks; return 1 if one failed."""
    rows = [*_jojokey(options.jojokey_conn_id, _request(options)), *_bucket(options)]
    show(rows, options.output)
    failed = [row for row in rows if row["state"] == FAILURE]
    if failed:
        say(f"jojokey: {len(failed)} of {len(rows)} checks failed.")
    return FAILED if failed else 0


def _row(name: str, state: str, detail: str) -> dict[str, Any]:
    return {"check": name, "state": state, "detail": detail}


def _jojokey(conn_id: str, request: ImageRequest) -> Iterator[dict[str, Any]]:
    from airflow_provider_jojokey.cli.connections import jojokey_hook

    try:
        hook = jojokey_hook(conn_id)
        yield _row("connection", OK, f"{conn_id}: {hook.client.base_url}")
    except JojoKeyError as error:
        yield _row("connection", FAILURE, error.message)
        return
    for warning in hook.settings.warnings:
        yield _row("connection", UNKNOWN, warning)
    model = hook.settings.default_model
    try:
        models = hook.list_models()
    except JojoKeyError as error:
        yield _row("token", FAILURE, error.message)
    else:
        yield _row("token", OK, f"valid, with access to {len(models)} model{'' if len(models) == 1 else 's'}")
        if model in models:
            yield _row("model", OK, f"the token has access to {model}")
        else:
            available = ", ".join(sorted(models)[:10]) or "none"
            yield _row(
                "model",
                FAILURE,
                f"The token has no access to {model}, but to {available}. Create a token in the image group "
                "that has the model.",
            )
    yield _balance(hook, request)


def _balance(hook: JojoKeyHook, request: ImageRequest) -> dict[str, Any]:
    try:
        usage = hook.get_token_usage()
    except JojoKeyBaseUrlError:
        return _row("balance", UNKNOWN, "this gateway doesn't report the balance of the token")
    except JojoKeyError as error:  # proves nothing about what the gateway can report
        detail = f"the gateway didn't report the balance of the token this time. {error.what}"
        return _row("balance", UNKNOWN, f"{detail.removesuffix('.')}{identifiers(error)}.")
    expires = usage.get("expires_at")
    if isinstance(expires, (int, float)) and 0 < expires < time.time():
        return _row("balance", FAILURE, "the token has expired. Create a new one in JojoKey's console")
    if usage.get("unlimited_quota") is True:
        return _row("balance", OK, "the token has no limit, so the balance of the account applies")
    available, used = usage.get("total_available"), usage.get("total_used")
    if isinstance(available, float) and not math.isfinite(available):
        available = None
    if not isinstance(available, (int, float)) or isinstance(available, bool):
        return _row("balance", UNKNOWN, "this gateway doesn't report the balance of the token")
    unit = hook.quota_unit
    left = None if unit is None else unit.cost_of(int(available))
    state = OK
    if unit is None or (available > 0 and left is None):
        detail = f"{available:,} of quota left; the gateway didn't state what it is worth"
        state = UNKNOWN
    else:
        detail = f"{left or Cost(0, unit.currency, False)} left"
        if isinstance(used, int) and (spent := unit.cost_of(used)) is not None:
            detail += f", {spent} used"
    if available <= 0:
        state = FAILURE
        detail += ". Raise the token's quota in JojoKey's console, or create a new token"
    elif left is not None:
        detail += _images_left(hook, left, request)
    return _row("balance", state, detail)


def _images_left(hook: JojoKeyHook, left: Cost, request: ImageRequest) -> str:
    """Return about how many images a balance pays for; nothing if the prices are in another currency."""
    from airflow_provider_jojokey.img2.estimate import expected_usage

    each = hook.prices.cost_of(expected_usage(request))
    if each is None or each.currency != left.currency or not each.nanos:
        return ""
    return (
        f": pays for about {left.nanos // each.nanos:,} images of {request.size} in {request.quality} quality "
        f"({each} each)"
    )


def _request(options: argparse.Namespace) -> ImageRequest:
    """Return a request of the given size and quality.

    :raises CommandFailed: if they are not valid
    """
    from airflow_provider_jojokey.img2.request import ImageRequest

    try:
        return ImageRequest(PROMPT, size=options.size, quality=options.quality)
    except ValueError as error:
        raise CommandFailed(f"{error}", USAGE) from None


def _bucket(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Test the S3 operations of a generation, with small objects."""
    from airflow_provider_jojokey.cli.connections import image_store
    from airflow_provider_jojokey.exceptions import JojoKeyStoreError
    from airflow_provider_jojokey.store.default_bucket import default_bucket
    from airflow_provider_jojokey.store.keys import RECEIPTS, bucket_problems, split_uri

    location = options.bucket or ""
    bucket, prefix = split_uri(location) if location.startswith("s3://") else (location, "")
    try:
        bucket = bucket or default_bucket(options.aws_conn_id) or ""
    except JojoKeyError as error:
        yield _row("bucket", FAILURE, error.message)
        return
    if not bucket and options.bucket is None:
        return
    for problem in bucket_problems(bucket):
        yield _row("bucket", FAILURE, problem.replace("s3_bucket=", "", 1))
        return
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    key = f"{RECEIPTS}{prefix}.check-{uuid.uuid4().hex}"
    store = image_store(options, stores_images=True)
    try:
        if store.read(bucket, key) is not None:
            raise JojoKeyStoreError(f"s3://{bucket}/{key} exists, although its name is random.")
        etag = store.write(bucket, key, b"{}", replacing=None)
        if etag is None:
            raise JojoKeyStoreError(f"s3://{bucket} rejects a new object as if it existed already.")
        verified = store.verify_conditional_writes(bucket, key, b"{}", etag).verified
        # Policies may reject parameters that only images have, such as a storage class.
        store.put(bucket, f"{key}.png", b"", "image/png", image=True)
    except JojoKeyError as error:
        yield _row("bucket", FAILURE, error.message)
        return
    detail = f"s3://{bucket}/{RECEIPTS}{prefix} can be read and written"
    kept = [uri for name in (key, f"{key}.png") if (uri := _delete(store, bucket, name)) is not None]
    if kept:
        detail += f"; {' and '.join(kept)} couldn't be deleted"
    if store.extra_args:
        detail += f", with {', '.join(sorted(store.extra_args))}"
    yield _row("bucket", OK, detail)
    yield _images(store, bucket, prefix)
    yield _conditional_writes(verified, store.supports_conditional_writes)


def _conditional_writes(verified: bool, supported: bool | None) -> dict[str, Any]:
    if verified:
        detail = "supported: concurrent processes can't both pay"
    elif supported is False:
        detail = "not supported by this store: processes that start within the same second could both pay"
    else:
        detail = "not tested, because S3 had an error in the meantime. Run the command again"
    return _row("conditional writes", OK if verified else UNKNOWN, detail)


def _images(store: Any, bucket: str, prefix: str) -> dict[str, Any]:
    """Test whether images can be stored below a prefix. A policy may reject them, although it accepts receipts."""
    key = f"{prefix}.jojokey-check-{uuid.uuid4().hex}.png"
    try:
        store.put(bucket, key, b"", "image/png", image=True)
    except JojoKeyError as error:
        if getattr(error, "transient", False):  # an upload waits until such an error has passed
            return _row("images", FAILURE, error.message)
        if prefix:
            return _row("images", FAILURE, f"{error.message} An image would be paid for and then rejected.")
        advice = f"If your images have a prefix, check it: --bucket s3://{bucket}/prefix"
        return _row("images", UNKNOWN, f"{error.what} {advice}")
    kept = _delete(store, bucket, key)
    suffix = "" if kept is None else f"; {kept} couldn't be deleted"
    return _row("images", OK, f"s3://{bucket}/{prefix} accepts images{suffix}")


def _delete(store: Any, bucket: str, key: str) -> str | None:
    """Delete the object of the check; return its URI if that isn't allowed. Tasks don't need that permission."""
    from airflow_provider_jojokey.store.extra_args import for_reads
    from airflow_provider_jojokey.store.s3_errors import translate_errors

    try:
        with translate_errors(f"delete s3://{bucket}/{key}"):
            store.client.delete_object(Bucket=bucket, Key=key, **for_reads(store.extra_args))
    except JojoKeyError:
        return f"s3://{bucket}/{key}"
    return None
