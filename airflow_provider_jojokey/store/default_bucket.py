"""The AWS connection's default bucket, for tasks that do not name a bucket."""

from __future__ import annotations

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError, JojoKeyStoreError

_TODO = 'Set it to {"service_config": {"s3": {"bucket_name": "posters"}}} in the extra, or remove it.'


def default_bucket(aws_conn_id: str | None) -> str | None:
    """Return the ``bucket_name`` in the ``service_config`` of an AWS connection, as ``S3Hook`` uses it.

    :param aws_conn_id: the connection; if it is ``None`` or doesn't exist, there is no default
    :raises JojoKeyConnectionError: if its ``bucket_name`` is not a valid bucket name
    :raises JojoKeyStoreError: if the connection can't be read
    """
    if aws_conn_id is None:
        return None
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import AirflowException

    from airflow_provider_jojokey.store.keys import bucket_problems

    name = None
    try:
        services = S3Hook(aws_conn_id=aws_conn_id).conn_config.service_config or {}
        name = (services.get("s3") or {}).get("bucket_name")
        valid = name in (None, "") or (isinstance(name, str) and not list(bucket_problems(name)))
    except (AttributeError, TypeError):  # the service_config, or S3's part of it, is not a dict
        valid = False
    except (AirflowException, KeyError, NotImplementedError, ValueError) as error:
        raise JojoKeyStoreError(
            f"The AWS connection {aws_conn_id!r} is not usable ({type(error).__name__}).",
            "Correct the connection's fields and extra.",
        ) from None
    if not valid:
        raise JojoKeyConnectionError(
            f"The service_config of the AWS connection {aws_conn_id!r} has no valid bucket_name"
            + (f": {str(name)[:80]!r}." if name else "."),
            _TODO,
        )
    return name or None
