"""Receive one reply: decode it as it arrives, download its links, check its images.

The image is paid for once the gateway answers with success, so this is lenient about everything but the image
itself. The rules:

* If all requested images have arrived, or the reply is complete and at least one image is usable, the
  generation succeeds. Images that are missing or broken are named in warnings.
* If the reply breaks off before that, or a linked image cannot be downloaded, it is an error that carries the
  images that did arrive, the links and the usage.
* Bytes that are no usable image are kept in the sink's folder as ``….bin``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import requests

from airflow_provider_jojokey.img2 import transport
from airflow_provider_jojokey.img2.classify import from_response
from airflow_provider_jojokey.img2.download import Downloader
from airflow_provider_jojokey.img2.errors import Img2Error, Kind
from airflow_provider_jojokey.img2.failures import NETWORK_ERRORS, is_disk_error, reason_of
from airflow_provider_jojokey.img2.images import Image, ImageFile, ImageHeader, NotAnImage
from airflow_provider_jojokey.img2.messages import find_task_id
from airflow_provider_jojokey.img2.redact import clean, public_link
from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder, ReplyError, ReplyImage
from airflow_provider_jojokey.img2.request import ImageRequest

MAX_BEGINNING_BYTES = 64 * 1024
USAGE_WAIT = 5.0
"""Seconds to wait for the usage when all images are whole and the stream does not end."""

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

OpenFile = Callable[[int], ImageFile]
OnFact = Callable[[str, str], None]


class Silence(Exception):
    """The reply goes on and brings nothing of an image."""


@dataclass(frozen=True, slots=True)
class Received:
    """A reply with at least one usable image.

    :param images: the images, checked
    :param reply: what else it says
    :param warnings: what differs from the request, a sentence each
    """

    images: list[Image]
    reply: Reply
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Receiver:
    """Receives the reply to one request. To be used once.

    :param response: a response of success, whose body was not read
    :param request: what was requested
    :param open_file: makes the file for image 0, 1, 2 …
    :param on_fact: called with facts about the response as soon as they are known
    :param downloader: downloads linked images
    :param patience: seconds to wait for the next byte of an image, whatever else comes
    :param aborted: ends the waits between the tries of a download
    :param decode_slots: bounds how many threads decode at once
    :param secret: a text that must not appear in errors, the token
    """

    response: requests.Response
    request: ImageRequest
    open_file: OpenFile
    on_fact: OnFact
    downloader: Downloader
    patience: float
    aborted: threading.Event
    decode_slots: AbstractContextManager[Any] | None = None
    secret: str = ""
    _files: list[ImageFile] = field(default_factory=list)
    _checked: dict[int, ImageHeader | NotAnImage] = field(default_factory=dict)
    _problems: list[str] = field(default_factory=list)
    _links: list[str] = field(default_factory=list)
    _beginning: bytes = b""

    def receive(self) -> Received:
        """Return the images and facts of the reply.

        :raises Img2Error: if it has no usable image, or breaks off, or a link cannot be downloaded
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
        decoder = ReplyDecoder(self._open, self._seal, ImageFile.seal_preview, expected=self.request.n)
        failure: BaseException | None = None
        try:
            self._read(decoder)
        except (ReplyError, NotAnImage, Silence, *NETWORK_ERRORS) as broken:
            failure = broken
        try:
            reply = decoder.understood()
        except (ReplyError, NotAnImage, OSError) as broken:
            failure, reply = failure or broken, Reply(None)
        images = [image for element in reply.images if (image := self._image(element)) is not None]
        complete = decoder.has_all or decoder.plain_whole or not (failure or reply.problem)
        disk = failure is not None and is_disk_error(failure)
        if images and complete and not disk and not self._links:
            return Received(images, reply, tuple(self._warnings(images)))
        error = self._error(reply, failure, bool(images))
        error.salvaged += images
        error.links += self._links
        error.usage = reply.usage
        raise error from None

    def _read(self, decoder: ReplyDecoder) -> None:
        """Feed the decoder until nothing more needs to be read."""
        arrived, deadline = 0, time.monotonic() + self.patience
        waits_for_usage = False
        for piece in transport.iter_chunks(self.response, self.decode_slots):
            if len(self._beginning) < MAX_BEGINNING_BYTES:
                self._beginning += piece[:MAX_BEGINNING_BYTES]
            decoder.feed(piece)
            del piece  # used memory is not held while waiting for the next piece
            if decoder.done:
                return
            now = time.monotonic()
            if decoder.has_all and not waits_for_usage:
                waits_for_usage, deadline = True, now + USAGE_WAIT
                transport.limit_wait(self.response, USAGE_WAIT)
            elif (size := sum(file.size for file in self._files)) != arrived and not waits_for_usage:
                arrived, deadline = size, now + self.patience
            elif now > deadline:
                # Pings say that the gateway is there, not that the model behind it is working.
                raise Silence(f"it has brought nothing of an image for {self.patience:.0f} s")

    def _open(self, index: int) -> ImageFile:
        self._files.append(self.open_file(index))
        return self._files[-1]

    def _seal(self, file: ImageFile) -> None:
        """Name a file by what it is worth, so that the next process knows if this one is killed."""
        try:
            self._checked[id(file)] = file.check()
            file.seal()
        except NotAnImage as error:
            self._checked[id(file)] = error
            file.seal_unusable()

    def _image(self, element: ReplyImage) -> Image | None:
        """Return one image, or note why it cannot be used."""
        file, problem = element.sink, element.problem
        if file is None and element.url:
            file, problem = self._download(element.url)
        name = f"image {element.index + 1}"
        if problem:
            kept = ""
            if file is not None and element.sink is not None and file.size:
                file.seal_unusable()
                kept = _kept(file)
            self._problems.append(f"{name}: {problem if element.url else self._clean(problem)}{kept}")
            return None
        assert file is not None
        header = self._checked.get(id(file))
        if not isinstance(header, ImageHeader):
            what = f"{header}" if "cut short" in str(header) else f"{header}, not PNG, JPEG or WebP"
            self._problems.append(f"{name} is {what}{_kept(file)}")
            return None
        return Image(element.index, file, *header, element.revised_prompt)

    def _download(self, link: str) -> tuple[ImageFile | None, str]:
        url = self.downloader.resolve(link)
        self.on_fact("link", url)
        file = self._open(len(self._files))
        try:
            self.downloader.download(url, file, self.aborted, self.secret)
        except (ReplyError, NotAnImage) as error:
            self._links.append(url)
            place = public_link(url, self.secret)
            problem = self._clean(str(error))
            return None, f"{problem}. It is paid for and may still be at {place}" if place else problem
        except OSError as error:
            self._links.append(url)
            return None, f"it could not be written to this machine's disk: {reason_of(error)}"
        self._seal(file)
        if isinstance(self._checked[id(file)], NotAnImage):
            self._links.append(url)
        return file, ""

    def _warnings(self, images: list[Image]) -> list[str]:
        warnings = []
        if len(images) < self.request.n:
            why = f": {'; '.join(self._problems)}" if self._problems else "; the gateway gave no reason"
            warnings.append(f"{len(images)} of {self.request.n} requested images arrived{why}.")
        elif self._problems:
            warnings.append(f"A part of the reply cannot be used: {'; '.join(self._problems)}.")
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
            reason = f"it could not be written to this machine's disk: {reason_of(failure)}"
            return self._unusable(reason)
        if isinstance(failure, Silence):
            return self._unusable(str(failure), Kind.UNKNOWN_OUTCOME)
        if not has_images:
            if reply.error is not None:
                return self._from_document(reply.error)
            if not self._links and (task_id := find_task_id(reply.document)):
                self.on_fact("task_id", clean(task_id, self.secret))
                return self._from_document(reply.document)
        if self._problems:
            return self._unusable("; ".join(self._problems), clean_already=True)
        if failure is not None:
            broken = isinstance(failure, (ReplyError, NotAnImage))
            return self._unusable(str(failure) if broken else f"it broke off: {reason_of(failure)}")
        if has_images or (reply.problem and self._looks_like_a_reply()):
            return self._unusable(reply.problem)
        return self._from_document(reply.document)

    def _looks_like_a_reply(self) -> bool:
        beginning = self._beginning.lstrip(b"\xef\xbb\xbf \t\r\n")
        return beginning[:1] in (b"{", b"[") or beginning.startswith((b"data:", b"event:", b":"))

    def _from_document(self, document: Any) -> Img2Error:
        headers: Mapping[str, str] = self.response.headers
        body = b"" if document is not None else self._beginning
        return from_response(self.response.status_code, headers, body, secret=self.secret, document=document)

    def _clean(self, text: str) -> str:
        """Redact what the gateway wrote. Paths and links of ours would not survive it."""
        return clean(text, self.secret)

    def _unusable(self, reason: str, kind: Kind = Kind.REPLY, clean_already: bool = False) -> Img2Error:
        lost = kind is Kind.UNKNOWN_OUTCOME
        what = "The response of JojoKey was lost" if lost else "JojoKey's response cannot be used"
        headers = self.response.headers
        return Img2Error(
            kind,
            f"{what}: {reason if clean_already else self._clean(reason)}",
            billed="unknown" if lost else "yes",
            status_code=self.response.status_code,
            request_id=clean(headers.get("X-Oneapi-Request-Id", ""), self.secret) or None,
            cf_ray=clean(headers.get("cf-ray", ""), self.secret) or None,
        )


def _kept(file: ImageFile) -> str:
    """Return where the bytes are, if they are in a file with a name."""
    return f" (kept as {file.path})" if file.path is not None and file.path.suffix == ".bin" else ""
