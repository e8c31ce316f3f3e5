"""Receive one response: decode it as it arrives, download linked images, check all images.

A response that contains an image was billed, whatever its status is, and so was any other with a status of success. So
the receiver accepts anything that contains usable images:

* If all requested images have arrived, or the response is complete and at least one image is usable, the
  generation succeeds. Warnings name images that are missing or broken.
* If the response is interrupted before that, or a linked image cannot be downloaded, the receiver raises an
  error. The error has the images that arrived, the links and the usage.
* If the status is an error, links don't count: they may lead to documentation. Without image data, the status decides.
* The receiver keeps data that is not a usable image as ``….bin`` in the folder of the image's file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import requests
from msgspec import Struct, field

from airflow_provider_jojokey.img2 import chunks
from airflow_provider_jojokey.img2.classify import from_response
from airflow_provider_jojokey.img2.download import Downloader
from airflow_provider_jojokey.img2.errors import Img2Error, Kind, is_sentence
from airflow_provider_jojokey.img2.failures import NETWORK_ERRORS, describe_cause, is_disk_error
from airflow_provider_jojokey.img2.images import Image, ImageFile, ImageHeader, NotAnImage, begins_binary
from airflow_provider_jojokey.img2.json_text import without_blanks
from airflow_provider_jojokey.img2.messages import find_task_id, find_task_link, message_of, task_id_of
from airflow_provider_jojokey.img2.redact import clean, public_link
from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder, ReplyError, ReplyImage
from airflow_provider_jojokey.img2.request import ImageRequest

MAX_BEGINNING_BYTES = 64 * 1024
ERROR_WAIT = 60.0
"""Seconds to wait for the body of an error, even if bytes still arrive."""
USAGE_WAIT = 5.0
"""Seconds to wait for the usage after all images are complete and the stream does not end."""

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

OpenFile = Callable[[int], ImageFile]
OnFact = Callable[[str, str], None]


class NoProgress(Exception):
    """The response continues without image data."""


class Received(Struct, frozen=True):
    """A response with at least one usable image.

    :param images: the images, checked
    :param reply: the other facts in the response
    :param warnings: what differs from the request, a sentence each
    """

    images: list[Image]
    reply: Reply
    warnings: tuple[str, ...]


class Receiver(Struct, eq=False):
    """Receives the response to one request. Not reusable.

    :param response: a response with an unread body
    :param request: what was requested
    :param open_file: opens the file for image 0, 1, 2 …
    :param on_fact: called with facts about the response as soon as they are known
    :param downloader: downloads linked images
    :param progress_timeout: seconds to wait for the next byte of image data, even if other data arrives
    :param aborted: ends the waits between download attempts
    :param decode_slots: limits how many threads decode at once
    :param secret: a text that must not appear in errors, the token
    """

    response: requests.Response
    request: ImageRequest
    open_file: OpenFile
    on_fact: OnFact
    downloader: Downloader
    progress_timeout: float
    aborted: threading.Event
    decode_slots: AbstractContextManager[Any] | None = None
    secret: str = ""
    _files: list[ImageFile] = field(default_factory=list)
    _checked: dict[int, ImageHeader | NotAnImage] = field(default_factory=dict)
    _problems: list[str] = field(default_factory=list)
    _links: list[str] = field(default_factory=list)
    _beginning: bytes = b""

    def __repr__(self) -> str:
        return object.__repr__(self)  # without the secret

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    def receive(self) -> Received:
        """Return the images and facts of the response.

        :raises Img2Error: if it has no usable image, is interrupted, or a linked image cannot be downloaded
        """
        kept: list[Image] = []
        try:
            received = self._receive()
            kept = received.images
            return received
        except Img2Error as error:
            kept = error.salvaged
            raise
        finally:
            for file in self._files:
                if not any(image.file is file for image in kept):
                    file.close()

    def _receive(self) -> Received:
        decoder = ReplyDecoder(
            self._open,
            self._seal,
            ImageFile.seal_preview,
            expected=self.request.n,
            anywhere=self._succeeded,
        )
        failure: BaseException | None = None
        try:
            self._read(decoder)
        except (ReplyError, NotAnImage, NoProgress, *NETWORK_ERRORS) as broken:
            failure = broken
        try:
            reply = decoder.partial_reply()
        except (ReplyError, NotAnImage, OSError) as broken:
            failure, reply = failure or broken, Reply(None)
        if not self._succeeded and not self._contains_image:
            raise self._from_document(None)
        images = [image for element in reply.images if (image := self._image(element)) is not None]
        complete = decoder.has_all or decoder.document_complete or not (failure or reply.problem)
        disk = failure is not None and is_disk_error(failure)
        if images and complete and not disk and not self._links:
            return Received(images, reply, tuple(self._warnings(images, reply)))
        error = self._error(reply, failure, bool(images))
        error.salvaged += images
        error.links += self._links
        error.usage = reply.usage
        raise error from None

    def _read(self, decoder: ReplyDecoder) -> None:
        """Feed the decoder until it needs no more data."""
        patience = self.progress_timeout if self._succeeded else ERROR_WAIT
        arrived, deadline = 0, time.monotonic() + patience
        waits_for_usage = False
        for chunk in chunks.iter_chunks(self.response, self.decode_slots):
            if len(self._beginning) < MAX_BEGINNING_BYTES:
                self._beginning += chunk[:MAX_BEGINNING_BYTES]
            if self._succeeded or not begins_binary(self._beginning):  # a picture may be a page of errors
                decoder.feed(chunk)
            del chunk  # free the memory while waiting for the next chunk
            enough = not self._succeeded and len(self._beginning) >= MAX_BEGINNING_BYTES
            if decoder.done or (enough and not self._contains_image):
                return
            now = time.monotonic()
            if decoder.has_all and not waits_for_usage:
                waits_for_usage, deadline = True, now + USAGE_WAIT
                chunks.set_read_timeout(self.response, USAGE_WAIT)
            elif (size := sum(file.size for file in self._files)) != arrived and not waits_for_usage:
                arrived, deadline = size, now + patience
            elif now > deadline:
                # Pings prove that the gateway is alive, not that the model behind it is working.
                raise NoProgress(f"no image data arrived for {patience:.0f} s")

    @property
    def _succeeded(self) -> bool:
        return 200 <= self.response.status_code < 300

    @property
    def _contains_image(self) -> bool:
        return any(file.is_image for file in self._files)

    def _open(self, index: int) -> ImageFile:
        self._files.append(self.open_file(index))
        return self._files[-1]

    def _seal(self, file: ImageFile) -> None:
        """Rename a file by its state: if this process is killed, the next one can salvage the image."""
        try:
            self._checked[id(file)] = file.check()
            file.seal()
        except NotAnImage as error:
            self._checked[id(file)] = error
            file.seal_unusable()

    def _image(self, element: ReplyImage) -> Image | None:
        """Return one image, or record why it cannot be used."""
        file, problem = element.sink, element.problem
        if element.url and not isinstance(self._checked.get(id(file)), ImageHeader):
            downloaded, problem = self._download(element.url)
            file = downloaded or file
        name = f"image {element.index + 1}"
        if problem:
            kept = ""
            if file is not None and file.size:
                file.seal_unusable()
                kept = _kept_at(file)
            self._problems.append(f"{name}: {problem if element.url else self._clean(problem)}{kept}")
            return None
        assert file is not None
        header = self._checked.get(id(file))
        if not isinstance(header, ImageHeader):
            self._problems.append(f"{name} is {header}{_kept_at(file)}")
            return None
        return Image(element.index, file, *header, element.revised_prompt)

    def _download(self, link: str) -> tuple[ImageFile | None, str]:
        url = self.downloader.resolve(link)
        self.on_fact("link", url)
        try:
            file = self._open(len(self._files))
            self.downloader.download(url, file, self.aborted, self.secret)
            self._seal(file)
        except (ReplyError, NotAnImage) as error:
            self._links.append(url)
            place = public_link(url, self.secret)
            problem = self._clean(str(error))
            return (
                None,
                f"{problem}. It is already paid and may still be available at {place}" if place else problem,
            )
        except OSError as error:
            self._links.append(url)
            return None, f"it could not be written to the local disk: {describe_cause(error)}"
        if isinstance(self._checked[id(file)], NotAnImage):
            self._links.append(url)
        return file, ""

    def _warnings(self, images: list[Image], reply: Reply) -> list[str]:
        warnings = []
        if not self._succeeded:
            said = self._clean(message_of(reply.error))
            warnings.append(
                f"The response has images, although its status is HTTP {self.response.status_code}"
                f"{f': {said}' if said else ''}{'' if is_sentence(said) else '.'}"
            )
        if len(images) < self.request.n:
            reasons = "; ".join(self._problems) or self._clean(message_of(reply.error))
            reason = f": {reasons}" if reasons else "; the gateway gave no reason"
            end = "" if is_sentence(reasons) else "."
            warnings.append(f"{len(images)} of {self.request.n} requested images arrived{reason}{end}")
        elif self._problems:
            warnings.append(f"Part of the response cannot be used: {'; '.join(self._problems)}.")
        pixels = self.request.pixels
        sizes = sorted(
            {f"{image.width}x{image.height}" for image in images if (image.width, image.height) != pixels}
        )
        if pixels and sizes:
            warnings.append(f"The image is {', '.join(sizes)}, not {self.request.size} as requested.")
        wanted = FORMATS.get(self.request.output_format or "")
        types = sorted({image.content_type for image in images if image.content_type != wanted})
        if wanted and types:
            warnings.append(f"The image is {', '.join(types)}, not {wanted} as requested.")
        return warnings

    # --- errors -------------------------------------------------------------------------------------------------

    def _error(self, reply: Reply, failure: BaseException | None, has_images: bool) -> Img2Error:
        if failure is not None and is_disk_error(failure):
            reason = f"it could not be written to the local disk: {describe_cause(failure)}"
            return self._unusable(reason)
        if isinstance(failure, NoProgress):
            return self._unusable(str(failure), Kind.UNKNOWN_OUTCOME)
        if not self._succeeded:
            # A part of an image arrived, so the error doesn't prove that nothing was billed.
            reason = "; ".join(self._problems) or self._clean(self._interruption(failure) or reply.problem)
            return self._unusable(
                reason or "no image is complete", clean_already=True, detail=message_of(reply.error)
            )
        if not has_images and not self._links:
            if reply.error is not None:
                return self._from_document(reply.error)
            if task_id := find_task_id(reply.document) or self._task_in_headers(reply, failure):
                self.on_fact("task_id", clean(task_id, self.secret))
                return self._from_document(reply.document)
        if self._problems:
            return self._unusable("; ".join(self._problems), clean_already=True)
        if failure is not None:
            return self._unusable(self._interruption(failure))
        if has_images or (reply.problem and self._is_json_or_events()):
            return self._unusable(reply.problem, detail=reply.text)
        # JSON in a web page isn't the response, unless it states what was used.
        is_page = without_blanks(self._beginning).startswith(b"<") and reply.usage is None
        return self._from_document(None if is_page else reply.document)

    def _interruption(self, failure: BaseException | None) -> str:
        if failure is None or isinstance(failure, (ReplyError, NotAnImage)):
            return str(failure or "")
        return f"it was interrupted: {describe_cause(failure)}"

    def _task_in_headers(self, reply: Reply, failure: BaseException | None) -> str | None:
        """Return the ID of the task that a response without images leads to, and report the task's address."""
        link = find_task_link({name.lower(): value for name, value in self.response.headers.items()})
        task_id = task_id_of(link)
        broken = failure is not None or (reply.problem and self._is_json_or_events())
        if task_id is None or broken or reply.images:
            return None
        self.on_fact("link", self.downloader.resolve(link))
        return task_id

    def _is_json_or_events(self) -> bool:
        return without_blanks(self._beginning).startswith((b"{", b"[", b"data:", b"event:", b":"))

    def _from_document(self, document: Any) -> Img2Error:
        headers: Mapping[str, str] = self.response.headers
        body = b"" if document is not None else self._beginning[:MAX_BEGINNING_BYTES]
        return from_response(self.response.status_code, headers, body, secret=self.secret, document=document)

    def _clean(self, text: str) -> str:
        """Redact the gateway's text. Not for our own paths and links, which it would shorten."""
        return clean(text, self.secret)

    def _unusable(
        self, reason: str, kind: Kind = Kind.REPLY, clean_already: bool = False, detail: str = ""
    ) -> Img2Error:
        lost = kind is Kind.UNKNOWN_OUTCOME
        summary = "The response of JojoKey was lost" if lost else "JojoKey's response cannot be used"
        headers = self.response.headers
        return Img2Error(
            kind,
            f"{summary}: {reason if clean_already else self._clean(reason)}",
            billed="unknown" if lost else "yes",
            detail=self._clean(detail),
            status_code=self.response.status_code,
            request_id=clean(headers.get("X-Oneapi-Request-Id", ""), self.secret) or None,
            cf_ray=clean(headers.get("cf-ray", ""), self.secret) or None,
        )


def _kept_at(file: ImageFile) -> str:
    """Return where the data was kept, if the file has a name and stays there."""
    named = file.path is not None and file.path.suffix == ".bin" and not file.temporary
    return f" (kept as {file.path})" if named else ""
