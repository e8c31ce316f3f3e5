"""Mail with a task's images, through the SMTP provider."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.smtp.notifications.smtp import SmtpNotifier

from airflow_provider_jojokey.notifications.message import Message

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class ImagesSmtpNotifier(SmtpNotifier):
    """Send a mail with what the task has made: ``on_success_callback=ImagesSmtpNotifier(to="design@example.com")``.

    It fits ``on_failure_callback`` as well: then the mail says what went wrong and what it cost.

    :param to: who gets it (templated)
    :param subject: by default, one line on what was made (templated)
    :param kwargs: whatever else an :class:`SmtpNotifier` takes
    """

    def __init__(self, to: str | Iterable[str], *, subject: str | None = None, **kwargs: Any) -> None:
        super().__init__(to, subject=subject, **kwargs)

    def notify(self, context: Context) -> None:
        """Send the mail."""
        # Here and not before: what Airflow has rendered may hold a prompt, and a prompt is no template.
        message = Message.of(context)
        mail = copy(self)  # one notifier may serve many tasks
        if mail.subject is None:
            mail.subject = " ".join(message.title.split())
        mail.html_content = message.html()
        SmtpNotifier.notify(mail, context)
