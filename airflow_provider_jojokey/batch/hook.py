"""The hook as a batch uses it: many threads, one pace, one look at the gateway's log for all."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings, JojoKeyHook

if TYPE_CHECKING:
    from airflow_provider_jojokey.batch.limiter import Ticket
    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.img2.client import Client, Generation, OpenFile
    from airflow_provider_jojokey.img2.request import ImageRequest

PIECES_AT_ONCE = 8
"""Pieces of replies decoded at the same time: more would not be quicker on one interpreter, but take memory."""
LOG_MAX_AGE = 60.0
"""Seconds for which one answer of the gateway's log serves all items: it allows some 20 questions in 20 minutes."""


class BatchHook(JojoKeyHook):
    """A :class:`JojoKeyHook` for the threads of a batch.

    It never sends anything again by itself: when, is for the batch to say, which knows of all its requests.

    :param jojokey_conn_id: the Airflow connection
    """

    def __init__(self, jojokey_conn_id: str = JojoKeyHook.default_conn_name) -> None:
        super().__init__(jojokey_conn_id)
        self.closed: JojoKeyError | None = None
        """Why nothing is to be sent any more."""
        self._thread = threading.local()

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The connection's settings, without its resends.

        :raises JojoKeyConnectionError: if it cannot be used
        """
        return replace(ConnectionSettings.of(self.get_connection(self.jojokey_conn_id)), max_resends=0)

    @cached_property
    def client(self) -> Client:
        """The client, which reads the gateway's log once for all threads, and takes in few pieces of replies at a time.

        :raises JojoKeyConnectionError: if the connection cannot be used
        """
        client = JojoKeyHook.client.func(self)  # type: ignore[attr-defined]
        client.billing_log = SharedLog(client.billing_log)
        client.turns = threading.BoundedSemaphore(PIECES_AT_ONCE)
        return client  # type: ignore[no-any-return]

    def take(self, ticket: Ticket, refusal: JojoKeyError | None = None) -> None:
        """Let this thread send one request, or with ``refusal`` do all but that."""
        self._thread.ticket = ticket
        self._thread.refusal = refusal

    def generate(self, request: ImageRequest, open_file: OpenFile | None = None) -> Generation:
        """Generate images: one paid POST, noted on the thread's ticket.

        :raises JojoKeyError: if there are no images
        """
        refusal = self.closed or self._thread.refusal
        if refusal is not None:
            raise copy.copy(refusal)  # who gets it adds to its message
        self._thread.ticket.sent_at = time.monotonic()
        return super().generate(request, open_file)


class SharedLog:
    """The gateway's log, asked once for all who want to know within a minute.

    What it does not have yet may be in it by the time it is looked at, so a batch believes that a
    request is missing only ``LOG_MAX_AGE`` later than a single task would.

    :param ask: asks the gateway
    """

    def __init__(self, ask: Any) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._answer: tuple[list[dict[str, Any]], float] | None = None
        self._error: BaseException | None = None

    def __call__(self) -> tuple[list[dict[str, Any]], float]:
        """Return the log's rows and the skew of its clock.

        :raises Img2Error: if the gateway does not tell
        """
        from airflow_provider_jojokey.img2.errors import Img2Error

        with self._lock:
            if time.monotonic() - self._asked_at >= LOG_MAX_AGE:
                self._answer = self._error = None
                try:
                    self._answer = self._ask()
                except Img2Error as error:
                    self._error = error
                self._asked_at = time.monotonic()
            if self._answer is None:
                assert self._error is not None
                raise self._error
            return self._answer
