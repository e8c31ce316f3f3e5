"""Connections for commands: what is missing is a sentence, not a stack trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook


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
