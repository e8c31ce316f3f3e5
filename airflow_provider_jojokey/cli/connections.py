"""Connections, stores and buckets of commands. Missing ones are reported without a stack trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.store.s3 import ImageStore


def image_store(options: argparse.Namespace, *, stores_images: bool) -> ImageStore:
    """Return the S3 store of ``--aws-conn-id``, with ``--s3-extra-args`` added to the settings.

    :param stores_images: whether the command stores images. Otherwise, the setting of an object lock doesn't matter,
        and may have ended
    :raises CommandFailed: if a parameter can't be used
    :raises JojoKeyRequestError: if a setting can't be used
    """
    from airflow_provider_jojokey.cli.console import USAGE, CommandFailed
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.extra_args import combined, parse_extra_args
    from airflow_provider_jojokey.store.s3 import ImageStore

    defaults = Settings.from_airflow_config().s3_extra_args
    try:
        given = parse_extra_args(options.s3_extra_args, "--s3-extra-args")
        extra = combined(defaults, given) if stores_images else {**defaults, **given}
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from None
    return ImageStore(options.aws_conn_id, extra_args=extra)


def named_or_default(bucket: str | None, aws_conn_id: str) -> str:
    """Return the bucket of an option, or else the AWS connection's default bucket.

    :param bucket: the value of the option: a name, ``s3://name``, or nothing
    :raises CommandFailed: if there is no bucket, or its name is invalid
    """
    from airflow_provider_jojokey.cli.console import USAGE, CommandFailed
    from airflow_provider_jojokey.store.default_bucket import default_bucket
    from airflow_provider_jojokey.store.keys import bucket_problems

    name = (bucket or "").removeprefix("s3://").rstrip("/") or default_bucket(aws_conn_id)
    if not name:
        raise CommandFailed(
            "--bucket is missing. Pass it, or set bucket_name in the service_config of the AWS connection",
            USAGE,
        )
    for problem in bucket_problems(name):
        raise CommandFailed(problem.replace("s3_bucket=", "--bucket ", 1), USAGE)
    return name


def jojokey_hook(conn_id: str) -> JojoKeyHook:
    """Return a hook with a valid connection.

    :raises JojoKeyError: if the connection doesn't exist, or can't be used
    """
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

    hook = JojoKeyHook(conn_id)
    hook.client  # noqa: B018 - reads the connection
    return hook
