"""The routes behind the tab and the page, as a FastAPI application that the API server mounts.

Each route asks for the permission that Airflow's own XCom view asks for. Buckets and keys come from the
XCom of the task in the path, and from nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote
from zoneinfo import available_timezones

import anyio
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.plugins import archive, backend, objects, tab, thumbnails, totals, xcoms
from airflow_provider_jojokey.plugins.access import ReadableDags, readable_xcom
from airflow_provider_jojokey.plugins.cards import Place, card
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.settings import Settings

MAX_LIMIT = 200
MAX_QUERY = 500
MAX_COSTS = 10_000
"""Rows of the cost table; the CSV file has all."""
ROUNDS = 10
"""How often it is looked further where the rows of a page hold no result at all."""
MAX_AGE = 24 * 3600
S3_THREADS = 8
"""Requests that may wait for S3 at a time, in threads of their own: Airflow's routes have theirs for themselves."""

T = TypeVar("T")


class Answer(JSONResponse):
    """JSON in ASCII: a prompt may hold half characters, which UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


app = FastAPI(
    title="JojoKey images", openapi_url=None, docs_url=None, redoc_url=None, default_response_class=Answer
)
app.mount(
    "/static",
    StaticFiles(directory=FilePath(__file__).parent / "static", check_dir=False),
    name="static",
)
_one_thread = anyio.CapacityLimiter(1)
_s3_threads = anyio.CapacityLimiter(S3_THREADS)


@app.middleware("http")
async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
    """Refuse what no database takes, and tell the browser to run nothing of what it gets."""
    if "\0" in request.url.path or "%00" in request.url.path or "%00" in request.url.query:
        return Answer({"detail": "No name holds a zero byte."}, 400)
    response: Response = await call_next(request)
    headers = response.headers
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    if "/static/" in request.url.path:
        headers.setdefault("Cache-Control", "no-cache")
    else:
        headers.setdefault("Cache-Control", "no-store")
        headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
    return response


@app.exception_handler(JojoKeyStoreError)
async def _store_error(_: Request, error: JojoKeyStoreError) -> Response:
    # Not its message: S3's own words can name endpoints, and nothing here was to be billed.
    return Answer({"detail": f"{error.what} {error.todo}".strip(), "reason": "s3"}, 502)


@app.exception_handler(backend.Unreadable)
async def _unreadable(_: Request, error: backend.Unreadable) -> Response:
    return Answer({"detail": f"The result is not in Airflow's database. {error}"}, 502)


@app.exception_handler(objects.NotServed)
async def _not_served(_: Request, error: objects.NotServed) -> Response:
    return Answer({"detail": str(error), "reason": error.reason}, 404)


@app.exception_handler(thumbnails.CannotShrink)
async def _cannot_shrink(_: Request, error: thumbnails.CannotShrink) -> Response:
    return Answer({"detail": str(error), "reason": "not_served"}, 501)


@app.exception_handler(archive.BadSelection)
async def _bad_selection(_: Request, error: archive.BadSelection) -> Response:
    return Answer({"detail": str(error)}, 400)


@app.exception_handler(Exception)
async def _error(_: Request, __: Exception) -> Response:
    return Answer({"detail": "Something went wrong here; the API server's log tells what."}, 500)


def wanted_results(
    readable: ReadableDags,
    dag_id: str | None = None,
    run_id: str | None = None,
    task_id: str | None = None,
    day_from: date | None = None,
    day_to: date | None = None,
    q: Annotated[str, Query(max_length=MAX_QUERY)] = "",
    state: Literal["failed", "failed_paid", "failed_perhaps_paid", "reused"] | None = None,
    run: Annotated[str, Query(max_length=MAX_QUERY)] = "",
    model: str | None = None,
    size: str | None = None,
    tz: Annotated[str, Query(max_length=64)] = "UTC",
) -> xcoms.Filter:
    """Return the filter in the query string, as far as the user may see."""
    if dag_id and dag_id not in readable:
        raise HTTPException(403, "Forbidden")
    return xcoms.Filter(
        dag_ids=frozenset([dag_id]) if dag_id else readable,
        run_id=run_id or None,
        task_id=task_id or None,
        day_from=day_from,
        day_to=day_to,
        words=tuple(q.split()),
        state=state,
        run=run or None,
        model=model or None,
        size=size or None,
        zone=tz if tz in _zones() else "UTC",
    )


_zones = cache(available_timezones)
Wanted = Annotated[xcoms.Filter, Depends(wanted_results)]


@app.get("/api/results")
def get_results(
    wanted: Wanted,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 60,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
    sort: Literal["newest", "tokens"] = "newest",
) -> Any:
    """Return the latest results, a page at a time."""
    after = cursor or None
    found, unread, why = xcoms.Rows([]), 0, None
    try:
        with create_session(scoped=False) as session:
            for look in (None, *[xcoms.ROWS_AT_ONCE] * ROUNDS):
                found, after = xcoms.page(session, wanted, limit=limit, cursor=after, look=look, sort=sort)
                unread, why = unread + found.unread, found.why or why
                if found.rows or after is None or unread >= xcoms.MAX_READ_ELSEWHERE:
                    break
            unsearched = xcoms.count_unsearched(session, wanted) if cursor is None else 0
    except xcoms.BadCursor as error:
        raise HTTPException(400, f"{error}") from None
    told = {"results": [card(one) for one in found.rows], "next": after}
    return Answer({**told, "unread": unread, "unread_why": why, "unsearched": unsearched})


@app.get("/api/totals")
async def get_totals(wanted: Wanted) -> Any:
    """Return what the results of a filter have cost, by day and by Dag."""
    return Answer(totals.totals(await _sums(wanted)))


@app.get("/api/costs")
async def get_costs(wanted: Wanted) -> Any:
    """Return what the results of a filter have cost, a row for each day, Dag and model."""
    return Answer({"rows": totals.as_json(totals.costs(await _sums(wanted))[:MAX_COSTS])})


@app.get("/api/costs.csv")
async def get_costs_as_csv(wanted: Wanted) -> Response:
    """Return the same as a file."""
    text = totals.as_csv(totals.costs(await _sums(wanted)))
    # The byte order mark tells spreadsheets that it is UTF-8.
    headers = {"Content-Disposition": disposition("attachment", "costs.csv")}
    return Response(
        text.encode("utf-8-sig", "replace"), media_type="text/csv; charset=utf-8", headers=headers
    )


async def _sums(wanted: xcoms.Filter) -> list[xcoms.Sum]:
    found = totals.known(wanted)
    if found is None:
        found = await anyio.to_thread.run_sync(totals.added, wanted, limiter=_one_thread)
    return found


DagId = Annotated[str, Path()]
MapIndex = Annotated[int, Path(ge=-1, lt=2**31)]
Number = Annotated[int, Path(ge=0, lt=10_000)]
Item = Annotated[int | None, Query(ge=0, lt=tab.MAX_PAGES * tab.ITEMS_A_PAGE)]


@app.get(
    "/api/dags/{dag_id}/runs/{run_id:path}/tasks/{task_id}/{map_index}",
    dependencies=[Depends(readable_xcom)],
)
async def get_task(
    dag_id: DagId,
    run_id: str,
    task_id: str,
    map_index: MapIndex,
    page: Annotated[int, Query(ge=0, lt=tab.MAX_PAGES)] = 0,
    failed: bool = False,
    q: Annotated[str, Query(max_length=MAX_QUERY)] = "",
) -> Any:
    """Return what is known about one task. ``failed`` and ``q`` select items of a batch."""
    wanted = tab.Wanted(failed, tuple(q.split()))
    return Answer(await _in_thread(lambda: _task((dag_id, run_id, task_id, map_index), page, wanted)))


def _task(place: Place, page: int, wanted: tab.Wanted) -> dict[str, Any]:
    dag_id, run_id, task_id, map_index = place
    mapped, more = xcoms.Rows([]), False
    with create_session(scoped=False) as session:
        row = xcoms.of_task(session, dag_id, run_id, task_id, map_index)
        if row is None and map_index == -1:
            mapped, more = xcoms.of_mapped(
                session,
                dag_id,
                run_id,
                task_id,
                limit=tab.ITEMS_A_PAGE,
                offset=page * tab.ITEMS_A_PAGE,
            )
    told: dict[str, Any] = {
        "result": None,
        "results": [card(one) for one in mapped.rows],
        "unread": mapped.unread,
        "unread_why": mapped.why,
        "attempts": [],
        "attempts_error": None,
        "s3_console": None,
        "items": [],
        "items_error": None,
        "next_page": page + 1 if more else None,
    }
    if row is None:
        return told
    told["result"] = card(row)
    told["attempts"], told["attempts_error"] = tab.attempts(row)
    told["s3_console"] = tab.s3_console(row.result)
    if row.result.manifest is not None:
        told["items"], told["next_page"], told["items_error"] = tab.items(row, page, wanted)
    return told


@app.get(
    "/images/{dag_id}/{run_id:path}/{task_id}/{map_index}/{number}", dependencies=[Depends(readable_xcom)]
)
async def get_image(
    request: Request,
    dag_id: DagId,
    run_id: str,
    task_id: str,
    map_index: MapIndex,
    number: Number,
    item: Item = None,
    v: str | None = None,
    download: bool = False,
) -> Response:
    """Return an image's bytes."""
    image, aws_conn_id = await _in_thread(lambda: _image((dag_id, run_id, task_id, map_index), number, item))
    headers = _caching(image, v, image.sha256)
    if _has_it(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    file, content_type = await _in_thread(lambda: objects.fetch(image, aws_conn_id))
    headers["Content-Length"] = str(image.bytes)
    headers["Content-Encoding"] = "identity"  # else Airflow before 3.3 compresses what is compressed
    headers["Content-Disposition"] = disposition("attachment" if download else "inline", image.name)
    return StreamingResponse(_pieces(file), media_type=content_type, headers=headers)


@app.get(
    "/thumbnails/{dag_id}/{run_id:path}/{task_id}/{map_index}/{number}",
    dependencies=[Depends(readable_xcom)],
)
async def get_thumbnail(
    request: Request,
    dag_id: DagId,
    run_id: str,
    task_id: str,
    map_index: MapIndex,
    number: Number,
    item: Item = None,
    v: str | None = None,
    width: Annotated[int, Query(ge=1, le=10_000)] = thumbnails.WIDTHS[-1],
) -> Response:
    """Return an image made small, as WebP."""
    image, aws_conn_id = await _in_thread(lambda: _image((dag_id, run_id, task_id, map_index), number, item))
    width = thumbnails.snapped(width)
    headers = _caching(image, v, f"{image.sha256}-{width}")
    if _has_it(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    data = await _in_thread(
        lambda: _cache().get(image, aws_conn_id, width, lambda: objects.fetch(image, aws_conn_id)[0])
    )
    return Response(data, media_type="image/webp", headers=headers)


@app.get("/zip")
async def get_zip(
    readable: ReadableDags,
    image: Annotated[list[str], Query(min_length=1, max_length=archive.MAX_IMAGES)],
) -> Response:
    """Return several images as one zip file. Each ``image`` is the path of an image after ``/images/``."""
    selected = [archive.selected(one) for one in dict.fromkeys(image)]
    if any(place[0] not in readable for place, _, _ in selected):
        raise HTTPException(403, "Forbidden")
    sources = await _in_thread(lambda: [_image(*one) for one in selected])
    archive.check(sources)
    headers = {"Content-Disposition": disposition("attachment", "images.zip"), "Content-Encoding": "identity"}
    pieces = archive.stream(sources, objects.fetch, objects.PIECE)
    return StreamingResponse(_in_threads(pieces), media_type="application/zip", headers=headers)


@app.get("/{path:path}", include_in_schema=False)
def nothing_else(path: str) -> Response:
    """Say in JSON that there is no such route."""
    raise HTTPException(404, "Not found")


def disposition(kind: str, name: str) -> str:
    """Return a Content-Disposition (RFC 6266) with a file name that is safe on every system.

    :param kind: ``"inline"`` or ``"attachment"``
    :param name: the last part of an S3 key, which may hold anything
    """
    safe = archive.safe_name(name)
    plain = re.sub(r"[^A-Za-z0-9._ ()-]", "_", safe)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"


def _image(place: Place, number: int, item: int | None) -> tuple[StoredImage, str | None]:
    with create_session(scoped=False) as session:
        row = xcoms.of_task(session, *place)
    result = row.result if row else None
    connection = result.aws_conn_id if result else None
    if result is not None and item is not None:
        result = tab.item(result, item)
    if result is None or number >= len(result.images):
        raise HTTPException(404, "The task has no such image.")
    return result.images[number], connection


def _caching(image: StoredImage, version: str | None, tag: str) -> dict[str, str]:
    # Only a URL that names these very bytes may be kept unasked: another try of the task makes others.
    named = version is not None and len(version) >= 16 and image.sha256.startswith(version)
    age = f"max-age={MAX_AGE}, immutable" if named else "no-cache"
    return {"ETag": f'"{tag}"', "Cache-Control": f"private, {age}"}


def _has_it(request: Request, etag: str) -> bool:
    told = request.headers.get("If-None-Match", "")
    return told.strip() == "*" or etag in {one.strip().removeprefix("W/") for one in told.split(",")}


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(objects.PIECE):
            yield piece


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces; a client that reads slowly keeps no thread."""
    while (piece := await _in_thread(lambda: next(pieces, None))) is not None:
        yield piece


def _cache() -> thumbnails.ThumbnailCache:
    global _the_cache
    if _the_cache is None:
        settings = Settings.from_airflow_config()
        _the_cache = thumbnails.ThumbnailCache(settings.thumbnail_directory, settings.thumbnail_cache_bytes)
    return _the_cache


_the_cache: thumbnails.ThumbnailCache | None = None


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call, limiter=_s3_threads)
