"""Routes that return files: images, thumbnails and zip files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Annotated, BinaryIO
from urllib.parse import parse_qs, quote

from airflow.utils.session import create_session
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from airflow_provider_jojokey.plugins import archive, objects, tab, thumbnails, xcoms
from airflow_provider_jojokey.plugins.access import DagId, MapIndex, ReadableDags, readable_xcom
from airflow_provider_jojokey.plugins.cards import Place
from airflow_provider_jojokey.plugins.objects import in_thread
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.settings import Settings

MAX_AGE = 24 * 3600
"""Seconds for which a browser may cache an image."""
MAX_FORM = 1024 * 1024
"""Maximum bytes of a form, which is in memory: more than the longest names of all images need."""
NO_IMAGE = "The task has no such image."

router = APIRouter()
Number = Annotated[int, Path(ge=0, lt=10_000)]
Item = Annotated[int | None, Query(ge=0, lt=tab.MAX_PAGES * tab.ITEMS_A_PAGE)]


async def one_image(
    dag_id: DagId, run_id: str, task_id: str, map_index: MapIndex, number: Number, item: Item = None
) -> archive.Selected:
    """Return the image that the path and the query name."""
    return (dag_id, run_id, task_id, map_index), number, item


OneImage = Annotated[archive.Selected, Depends(one_image)]


@router.get(
    "/images/{dag_id}/{run_id:path}/{task_id}/{map_index}/{number}", dependencies=[Depends(readable_xcom)]
)
async def get_image(
    request: Request,
    selected: OneImage,
    v: str | None = None,
    download: bool = False,
) -> Response:
    """Return the content of an image."""
    image, aws_conn_id = await in_thread(lambda: _image(*selected))
    headers = _caching(image, v, image.sha256)
    if _etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    file, content_type = await in_thread(lambda: objects.fetch(image, aws_conn_id))
    headers["Content-Length"] = str(image.bytes)
    headers["Content-Encoding"] = "identity"  # else Airflow before 3.3 compresses the image again
    headers["Content-Disposition"] = disposition("attachment" if download else "inline", image.name)
    return StreamingResponse(_chunks(file), media_type=content_type, headers=headers)


@router.get(
    "/thumbnails/{dag_id}/{run_id:path}/{task_id}/{map_index}/{number}",
    dependencies=[Depends(readable_xcom)],
)
async def get_thumbnail(
    request: Request,
    selected: OneImage,
    v: str | None = None,
    width: Annotated[int, Query(ge=1, le=10_000)] = thumbnails.WIDTHS[-1],
) -> Response:
    """Return a thumbnail of an image as WebP."""
    image, aws_conn_id = await in_thread(lambda: _image(*selected))
    width = thumbnails.nearest_width(width)
    headers = _caching(image, v, f"{image.sha256}-{width}")
    if _etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    data = await in_thread(
        lambda: _cache().get(image, aws_conn_id, width, lambda: objects.fetch(image, aws_conn_id)[0])
    )
    return Response(data, media_type="image/webp", headers=headers)


@router.get("/zip")
async def get_zip(
    readable: ReadableDags,
    image: Annotated[list[str], Query(min_length=1, max_length=archive.MAX_IMAGES)],
) -> Response:
    """Return several images as one zip file."""
    return await _zip(readable, image)


@router.post("/zip")
async def post_zip(readable: ReadableDags, request: Request) -> Response:
    """Return several images as one zip file. It changes nothing: proxies reject the long URL of many images."""
    # FastAPI's Form would need another dependency.
    form = bytearray()
    async for chunk in request.stream():
        form += chunk
        if len(form) > MAX_FORM:
            raise HTTPException(413, f"Select 1 to {archive.MAX_IMAGES} images.")
    image = parse_qs(form.decode(errors="replace")).get("image", [])
    if not 1 <= len(image) <= archive.MAX_IMAGES:
        raise HTTPException(422, f"Select 1 to {archive.MAX_IMAGES} images.")
    return await _zip(readable, image)


async def _zip(readable: frozenset[str], image: list[str]) -> Response:
    """Return several images as one zip file.

    Each ``image`` is the part of an image's URL after ``/images/``. The zip file names selected images that the task
    has replaced or no longer has. If it has none of them, the status is 404.
    """
    selected = [archive.selected(path) for path in dict.fromkeys(image)]
    if any(place[0] not in readable for (place, _, _), _ in selected):
        raise HTTPException(403, "Forbidden")
    found = await in_thread(lambda: [_find(*selection) for selection, _ in selected])
    if not any(found):
        raise HTTPException(404, NO_IMAGE)
    sources: list[archive.Source] = []
    left_out: list[str] = []
    for source, ((place, number, _), version) in zip(found, selected, strict=True):
        if source is None:
            task = " / ".join(str(part) for part in place if part != -1)
            left_out.append(f"{task}, image {number + 1}: {NO_IMAGE}")
        elif source[0].sha256.startswith(version):
            sources.append(source)
        else:
            left_out.append(f"{source[0].uri}: The image was replaced after you selected it.")
    archive.check(sources)
    headers = {"Content-Disposition": disposition("attachment", "images.zip"), "Content-Encoding": "identity"}
    chunks = archive.stream(sources, objects.fetch, objects.CHUNK, left_out)
    return StreamingResponse(_in_threads(chunks), media_type="application/zip", headers=headers)


def disposition(kind: str, name: str) -> str:
    """Return a Content-Disposition (RFC 6266) with a safe file name.

    :param kind: ``"inline"`` or ``"attachment"``
    :param name: the last part of an S3 key, which may contain any character
    """
    safe = archive.safe_name(name)
    plain = re.sub(r"[^A-Za-z0-9._ ()-]", "_", safe)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"


def _image(place: Place, number: int, item: int | None) -> archive.Source:
    source = _find(place, number, item)
    if source is None:
        raise HTTPException(404, NO_IMAGE)
    return source


def _find(place: Place, number: int, item: int | None) -> archive.Source | None:
    with create_session(scoped=False) as session:
        row = xcoms.of_task(session, *place)
    result = row.result if row else None
    connection = result.aws_conn_id if result else None
    if result is not None and item is not None:
        result = tab.item(result, item)
    if result is None or number >= len(result.images):
        return None
    return result.images[number], connection


def _caching(image: StoredImage, version: str | None, tag: str) -> dict[str, str]:
    # Only a URL with the image's hash may be cached without revalidation: another try stores another image.
    has_hash = version is not None and len(version) >= 16 and image.sha256.startswith(version)
    age = f"max-age={MAX_AGE}, immutable" if has_hash else "no-cache"
    return {"ETag": f'"{tag}"', "Cache-Control": f"private, {age}"}


def _etag_matches(request: Request, etag: str) -> bool:
    header = request.headers.get("If-None-Match", "")
    return header.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(objects.CHUNK):
            yield chunk


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks. Slow clients block no thread: one is used only per read."""
    while (chunk := await in_thread(lambda: next(chunks, None))) is not None:
        yield chunk


@cache
def _cache() -> thumbnails.ThumbnailCache:
    settings = Settings.from_airflow_config()
    return thumbnails.ThumbnailCache(settings.thumbnail_directory, settings.thumbnail_cache_bytes)
