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
