"""A notifier for Slack. It needs the Slack provider."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

from airflow_provider_jojokey.notifications.message import Message, slack_escape

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class ImagesSlackWebhookNotifier(SlackWebhookNotifier):
    """Send a task's images to a Slack channel: ``on_success_callback=ImagesSlackWebhookNotifier()``.

    With ``on_failure_callback``, the message contains the error and the cost.

    :param slack_webhook_conn_id: the connection to Slack (templated)
    :param kwargs: other arguments of :class:`SlackWebhookNotifier`
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"text": "", **kwargs})

    def notify(self, context: Context) -> None:
        """Send the message."""
        # Build the message here, after Airflow has rendered templates: a prompt must not be rendered.
        message = Message.of(context)
        post = copy(self)  # one notifier may serve many tasks
        post.text = post.text or slack_escape(message.title)
        post.blocks = message.slack_blocks()
        SlackWebhookNotifier.notify(post, context)  # type: ignore[no-untyped-call]
