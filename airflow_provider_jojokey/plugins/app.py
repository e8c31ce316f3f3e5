"""The FastAPI application with the routes of the tab and the page.

The API server mounts it. Each route requires the same permission as Airflow's own XCom view. Buckets and keys
come only from the XCom of the task in the path, never from the request.
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
from airflow_provider_jojokey.plugins.cards import Place, card, progress_card
from airflow_provider_jojokey.plugins.paging import BadCursor
from airflow_provider_jojokey.plugins.sums import Sum
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.settings import Settings

MAX_LIMIT = 200
MAX_QUERY = 500
MAX_COSTS = 10_000
"""Maximum rows in the JSON cost table; the CSV file has all rows."""
MAX_EMPTY_SCANS = 10
"""Maximum further scans of :data:`xcoms.ROWS_AT_ONCE` rows each if a page contains no results."""
MAX_AGE = 24 * 3600
"""Seconds for which a browser may cache an image."""
S3_THREADS = 8
"""Maximum threads that wait for S3. They are separate, so that a slow S3 doesn't block Airflow's own routes."""

T = TypeVar("T")


class AsciiJSONResponse(JSONResponse):
    """A JSON response in ASCII.

    A prompt may contain unpaired surrogates, which UTF-8 cannot encode.
    """

    def render(self, content: Any) -> bytes:
        """Return the response body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


app = FastAPI(
    title="JojoKey images",
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    default_response_class=AsciiJSONResponse,
)
app.mount(
    "/static",
    StaticFiles(directory=FilePath(__file__).parent / "static", check_dir=False),
    name="static",
)
_sums_thread = anyio.CapacityLimiter(1)
_s3_threads = anyio.CapacityLimiter(S3_THREADS)


@app.middleware("http")
async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
    """Reject NUL characters and set security headers.

    PostgreSQL cannot store NUL characters. The headers keep browsers from running content of responses.
    """
    if "\0" in request.url.path or "%00" in request.url.path or "%00" in request.url.query:
        return AsciiJSONResponse({"detail": "The URL contains a NUL character."}, 400)
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
    # Leave out error.message: text from S3 can contain endpoint names.
    return AsciiJSONResponse({"detail": f"{error.what} {error.todo}".strip(), "reason": "s3"}, 502)


@app.exception_handler(backend.Unreadable)
async def _unreadable(_: Request, error: backend.Unreadable) -> Response:
    return AsciiJSONResponse({"detail": f"The result is not in Airflow's database. {error}"}, 502)


@app.exception_handler(objects.NotServed)
async def _not_served(_: Request, error: objects.NotServed) -> Response:
    return AsciiJSONResponse({"detail": str(error), "reason": error.reason}, 404)


@app.exception_handler(thumbnails.ThumbnailUnavailable)
async def _thumbnail_unavailable(_: Request, error: thumbnails.ThumbnailUnavailable) -> Response:
    return AsciiJSONResponse({"detail": str(error), "reason": "not_served"}, 501)


@app.exception_handler(archive.BadSelection)
async def _bad_selection(_: Request, error: archive.BadSelection) -> Response:
    return AsciiJSONResponse({"detail": str(error)}, 400)


@app.exception_handler(Exception)
async def _internal_error(_: Request, __: Exception) -> Response:
    return AsciiJSONResponse(
        {"detail": "An internal error occurred. The API server's log has the details."}, 500
    )


def results_filter(
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
    """Return the filter in the query string, limited to Dags that the user may read."""
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
Wanted = Annotated[xcoms.Filter, Depends(results_filter)]


@app.get("/api/results")
def get_results(
    wanted: Wanted,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 60,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
    sort: Literal["newest", "tokens", "cost"] = "newest",
) -> Any:
    """Return a page of results."""
    after = cursor or None
    rows, unread, why = xcoms.Rows([]), 0, None
    try:
        with create_session(scoped=False) as session:
            for scan in (None, *[xcoms.ROWS_AT_ONCE] * MAX_EMPTY_SCANS):
                rows, after = xcoms.page(session, wanted, limit=limit, cursor=after, scan=scan, sort=sort)
                unread, why = unread + rows.unread, rows.why or why
                if rows.rows or after is None or unread >= xcoms.MAX_READ_ELSEWHERE:
                    break
            unsearched = xcoms.count_unsearched(session, wanted) if cursor is None else 0
    except BadCursor as error:
        raise HTTPException(400, f"{error}") from None
    answer = {"results": [card(row) for row in rows.rows], "next": after}
    return AsciiJSONResponse({**answer, "unread": unread, "unread_why": why, "unsearched": unsearched})


@app.get("/api/totals")
async def get_totals(wanted: Wanted) -> Any:
    """Return the cost of the filtered results, in total, by day and by Dag."""
    return AsciiJSONResponse(await _from_sums(wanted, totals.totals))


@app.get("/api/costs")
async def get_costs(wanted: Wanted) -> Any:
    """Return the cost of the filtered results, with a row for each day, Dag and model."""
    rows = await _from_sums(wanted, lambda sums: totals.as_json(totals.costs(sums)[:MAX_COSTS]))
    return AsciiJSONResponse({"rows": rows})


@app.get("/api/costs.csv")
async def get_costs_as_csv(wanted: Wanted) -> Response:
    """Return all rows of the cost table as a CSV file."""
    text = await _from_sums(wanted, lambda sums: totals.as_csv(totals.costs(sums)))
    # Spreadsheets recognize UTF-8 by the byte order mark.
    headers = {"Content-Disposition": disposition("attachment", "costs.csv")}
    return Response(
        text.encode("utf-8-sig", "replace"), media_type="text/csv; charset=utf-8", headers=headers
    )


async def _from_sums(wanted: xcoms.Filter, function: Callable[[list[Sum]], T]) -> T:
    """Return what ``function`` makes of the sums. Thousands of them take too long for the event loop."""
    sums = totals.cached_sums(wanted)
    if sums is None:
        sums = await anyio.to_thread.run_sync(totals.compute_sums, wanted, limiter=_sums_thread)
    return await anyio.to_thread.run_sync(function, sums)


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
    """Return the details of one task. ``failed`` and ``q`` select items of a batch."""
    wanted = tab.Wanted(failed, tuple(q.split()))
    return AsciiJSONResponse(
        await _in_thread(lambda: _task((dag_id, run_id, task_id, map_index), page, wanted))
    )


def _task(place: Place, page: int, wanted: tab.Wanted) -> dict[str, Any]:
    dag_id, run_id, task_id, map_index = place
    mapped, more = xcoms.Rows([]), False
    with create_session(scoped=False) as session:
        row = xcoms.of_task(session, dag_id, run_id, task_id, map_index)
        progress = None if row else xcoms.progress_of_task(session, dag_id, run_id, task_id, map_index)
        if row is None and map_index == -1:
            mapped, more = xcoms.of_mapped(
                session,
                dag_id,
                run_id,
                task_id,
                limit=tab.ITEMS_A_PAGE,
                offset=page * tab.ITEMS_A_PAGE,
            )
    answer: dict[str, Any] = {
        "result": None,
        "progress": progress and progress_card(progress),
        "results": [card(mapped_row) for mapped_row in mapped.rows],
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
        return answer
    answer["result"] = card(row)
    answer["attempts"], answer["attempts_error"] = tab.attempts(row)
    answer["s3_console"] = tab.s3_console(row.result)
    if row.result.manifest is not None:
        answer["items"], answer["next_page"], answer["items_error"] = tab.items(row, page, wanted)
    return answer


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
    """Return the content of an image."""
    image, aws_conn_id = await _in_thread(lambda: _image((dag_id, run_id, task_id, map_index), number, item))
    headers = _caching(image, v, image.sha256)
    if _etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    file, content_type = await _in_thread(lambda: objects.fetch(image, aws_conn_id))
    headers["Content-Length"] = str(image.bytes)
    headers["Content-Encoding"] = "identity"  # else Airflow before 3.3 compresses the image again
    headers["Content-Disposition"] = disposition("attachment" if download else "inline", image.name)
    return StreamingResponse(_chunks(file), media_type=content_type, headers=headers)


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
    """Return a thumbnail of an image as WebP."""
    image, aws_conn_id = await _in_thread(lambda: _image((dag_id, run_id, task_id, map_index), number, item))
    width = thumbnails.nearest_width(width)
    headers = _caching(image, v, f"{image.sha256}-{width}")
    if _etag_matches(request, headers["ETag"]):
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
    """Return several images as one zip file.

    Each ``image`` is the part of an image's URL after ``/images/``.
    """
    selected = [archive.selected(path) for path in dict.fromkeys(image)]
    if any(place[0] not in readable for place, _, _ in selected):
        raise HTTPException(403, "Forbidden")
    sources = await _in_thread(lambda: [_image(*selection) for selection in selected])
    archive.check(sources)
    headers = {"Content-Disposition": disposition("attachment", "images.zip"), "Content-Encoding": "identity"}
    chunks = archive.stream(sources, objects.fetch, objects.CHUNK)
    return StreamingResponse(_in_threads(chunks), media_type="application/zip", headers=headers)


@app.get("/{path:path}", include_in_schema=False)
def not_found(path: str) -> Response:
    """Return status 404 as JSON for every other path."""
    raise HTTPException(404, "Not found")


def disposition(kind: str, name: str) -> str:
    """Return a Content-Disposition (RFC 6266) with a safe file name.

    :param kind: ``"inline"`` or ``"attachment"``
    :param name: the last part of an S3 key, which may contain any character
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
    while (chunk := await _in_thread(lambda: next(chunks, None))) is not None:
        yield chunk


def _cache() -> thumbnails.ThumbnailCache:
    global _the_cache
    if _the_cache is None:
        settings = Settings.from_airflow_config()
        _the_cache = thumbnails.ThumbnailCache(settings.thumbnail_directory, settings.thumbnail_cache_bytes)
    return _the_cache


_the_cache: thumbnails.ThumbnailCache | None = None


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call, limiter=_s3_threads)
