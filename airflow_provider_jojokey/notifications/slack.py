"""A message to Slack with a task's images, through the Slack provider, where it is installed."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

from airflow_provider_jojokey.notifications.message import Message, slack_escape

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class ImagesSlackWebhookNotifier(SlackWebhookNotifier):
    """Tell a Slack channel what the task has made: ``on_success_callback=ImagesSlackWebhookNotifier()``.

    It fits ``on_failure_callback`` as well: then the message says what went wrong and what it cost.

    :param slack_webhook_conn_id: the connection to Slack (templated)
    :param kwargs: whatever else a :class:`SlackWebhookNotifier` takes
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"text": "", **kwargs})

    def notify(self, context: Context) -> None:
        """Send the message."""
        # Here and not before: what Airflow has rendered may hold a prompt, and a prompt is no template.
        message = Message.of(context)
        post = copy(self)  # one notifier may serve many tasks
        post.text = post.text or slack_escape(message.title)
        post.blocks = message.slack_blocks()
        SlackWebhookNotifier.notify(post, context)  # type: ignore[no-untyped-call]
