"""A notifier for mail. It needs the SMTP provider."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.smtp.notifications.smtp import SmtpNotifier

from airflow_provider_jojokey.notifications.message import Message

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class ImagesSmtpNotifier(SmtpNotifier):
    """Send a task's images by mail: ``on_success_callback=ImagesSmtpNotifier(to="design@example.com")``.

    With ``on_failure_callback``, the mail contains the error and the cost.

    :param to: the recipients (templated)
    :param subject: the subject; by default one line about the result (templated)
    :param kwargs: other arguments of :class:`SmtpNotifier`
    """

    def __init__(self, to: str | Iterable[str], *, subject: str | None = None, **kwargs: Any) -> None:
        super().__init__(to, subject=subject, **kwargs)

    def notify(self, context: Context) -> None:
        """Send the mail."""
        # Build the message here, after Airflow has rendered templates: a prompt must not be rendered.
        message = Message.of(context)
        mail = copy(self)  # one notifier may serve many tasks
        if mail.subject is None:
            mail.subject = " ".join(message.title.split())
        mail.html_content = message.html()
        SmtpNotifier.notify(mail, context)
