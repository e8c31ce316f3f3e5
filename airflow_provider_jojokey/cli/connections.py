"""Connections for commands: what is missing is a sentence, not a stack trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError

if TYPE_CHECKING:
    import argparse

    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.store.s3 import ImageStore


def image_store(options: argparse.Namespace) -> ImageStore:
    """Return the S3 store of ``--aws-conn-id``, with ``--s3-extra-args`` on top of the worker's.

    :raises CommandFailed: if a parameter can't be used
    """
    from airflow_provider_jojokey.cli.console import USAGE, CommandFailed
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.extra_args import parse_extra_args
    from airflow_provider_jojokey.store.s3 import ImageStore

    try:
        given = parse_extra_args(getattr(options, "s3_extra_args", None), "--s3-extra-args")
        extra = {**Settings.from_airflow_config().s3_extra_args, **given}
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from None
    return ImageStore(options.aws_conn_id, extra_args=extra)


def named_or_default(bucket: str | None, aws_conn_id: str) -> str:
    """Return the bucket that an option names, or the one that the AWS connection names.

    :param bucket: the option's value: a name, ``s3://name``, or nothing
    :raises CommandFailed: if there is none, or it is not a valid name
    """
    from airflow_provider_jojokey.cli.console import USAGE, CommandFailed
    from airflow_provider_jojokey.store.default_bucket import default_bucket
    from airflow_provider_jojokey.store.keys import bucket_problems

    name = (bucket or "").removeprefix("s3://").rstrip("/") or default_bucket(aws_conn_id)
    if not name:
        raise CommandFailed(
            "--bucket is missing: pass it, or set bucket_name in the service_config of the AWS connection",
            USAGE,
        )
    for problem in bucket_problems(name):
        raise CommandFailed(problem.replace("s3_bucket=", "--bucket ", 1), USAGE)
    return name


def jojokey_hook(conn_id: str) -> JojoKeyHook:
    """Return a hook whose connection is there and can be used.

    :raises JojoKeyConnectionError: if it is not, or cannot
    """
    from airflow.providers.common.compat.sdk import AirflowException

    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

    hook = JojoKeyHook(conn_id)
    try:
        hook.client  # noqa: B018 - reads the connection
    except JojoKeyError:
        raise
    except AirflowException:
        raise JojoKeyConnectionError(
            f"The connection {conn_id!r} does not exist.",
            f"Add it: airflow connections add {conn_id} --conn-type jojokey --conn-password sk-…",
        ) from None
    return hook
