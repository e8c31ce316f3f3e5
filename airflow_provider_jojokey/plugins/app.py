"""The FastAPI application with the routes of the tab and the page.

The API server mounts it. Each route requires the same permission as Airflow's own XCom view. Buckets and keys
come only from the XCom of the task in the path, never from the request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import available_timezones

import anyio
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.plugins import (
    archive,
    backend,
    files,
    kept_sums,
    objects,
    tab,
    thumbnails,
    totals,
    xcoms,
)
from airflow_provider_jojokey.plugins.access import DagId, MapIndex, ReadableDags, readable_xcom
from airflow_provider_jojokey.plugins.cards import Place, card, progress_card
from airflow_provider_jojokey.plugins.files import disposition
from airflow_provider_jojokey.plugins.objects import in_thread
from airflow_provider_jojokey.plugins.paging import BadCursor
from airflow_provider_jojokey.plugins.sums import Sum
from airflow_provider_jojokey.translatable import Translatable

MAX_LIMIT = 200
MAX_QUERY = 500
MAX_COSTS = 10_000
"""Maximum rows in the JSON cost table; the CSV file has all rows."""
MAX_EMPTY_SCANS = 10
"""Maximum further scans of :data:`xcoms.ROWS_AT_ONCE` rows each if a page contains no results."""

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


@app.middleware("http")
async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
    """Reject NUL characters and set security headers.

    PostgreSQL cannot store NUL characters. The headers keep browsers from running content of responses.
    """
    if "\0" in request.url.path or "%00" in request.url.path or "%00" in request.url.query:
        return _error(400, Translatable("The URL contains a NUL character."))
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
    return _error(502, objects.problem_of(error), "s3")


@app.exception_handler(backend.Unreadable)
async def _unreadable(_: Request, error: backend.Unreadable) -> Response:
    return _error(502, Translatable("The result is not in Airflow's database. {why}", why=error.message))


@app.exception_handler(objects.NotServed)
async def _not_served(_: Request, error: objects.NotServed) -> Response:
    return _error(404, error.message, error.reason)


@app.exception_handler(thumbnails.ThumbnailUnavailable)
async def _thumbnail_unavailable(_: Request, error: thumbnails.ThumbnailUnavailable) -> Response:
    return _error(501, error.message, "not_served")


@app.exception_handler(archive.BadSelection)
async def _bad_selection(_: Request, error: archive.BadSelection) -> Response:
    return _error(400, error.message)


@app.exception_handler(BadCursor)
async def _bad_cursor(_: Request, __: BadCursor) -> Response:
    return _error(400, Translatable("The cursor is invalid."))


@app.exception_handler(Exception)
async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(500, Translatable("An internal error occurred. The API server's log has the details."))


def _error(status: int, message: Translatable, reason: str | None = None) -> Response:
    return AsciiJSONResponse({**message.to_json(), **({"reason": reason} if reason else {})}, status)


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
    with create_session(scoped=False) as session:
        for scan in (None, *[xcoms.ROWS_AT_ONCE] * MAX_EMPTY_SCANS):
            rows, after = xcoms.page(session, wanted, limit=limit, cursor=after, scan=scan, sort=sort)
            unread, why = unread + rows.unread, rows.why or why
            if rows.rows or after is None or unread >= xcoms.MAX_READ_ELSEWHERE:
                break
        unsearched = xcoms.count_unsearched(session, wanted) if cursor is None else 0
    answer = {"results": [card(row) for row in rows.rows], "next": after, "unread": unread}
    return AsciiJSONResponse({**answer, "unread_why": why and why.to_json(), "unsearched": unsearched})


@app.get("/api/totals")
async def get_totals(wanted: Wanted) -> Any:
    """Return the cost of the filtered results, in total, by day and by Dag."""
    return AsciiJSONResponse(await _from_sums(wanted, totals.totals))


@app.get("/api/costs")
async def get_costs(wanted: Wanted) -> Any:
    """Return the cost of the filtered results, with a row for each day, Dag and model."""

    def answer(sums: list[Sum]) -> dict[str, Any]:
        rows = totals.costs(sums)
        return {"rows": totals.as_json(rows[:MAX_COSTS]), "count": len(rows)}

    return AsciiJSONResponse(await _from_sums(wanted, answer))


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
    sums = kept_sums.cached_sums(wanted)
    if sums is None:
        sums = await anyio.to_thread.run_sync(kept_sums.compute_sums, wanted, limiter=_sums_thread)
    return await anyio.to_thread.run_sync(function, sums)


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
        await in_thread(lambda: _task((dag_id, run_id, task_id, map_index), page, wanted))
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
        "unread_why": mapped.why and mapped.why.to_json(),
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
    answer["attempts"], problem = tab.attempts(row)
    answer["attempts_error"] = problem and problem.to_json()
    answer["s3_console"] = tab.s3_console(row.result)
    if row.result.manifest is not None:
        answer["items"], answer["next_page"], problem = tab.items(row, page, wanted)
        answer["items_error"] = problem and problem.to_json()
    elif row.result.batch and (row.result.count or row.result.state == "failed"):
        # A batch without items has no list.
        problem = Translatable("The list of all images could not be stored. These are the first ones.")
        answer["items_error"] = problem.to_json()
    return answer


app.include_router(files.router)


@app.get("/{path:path}", include_in_schema=False)
def not_found(path: str) -> Response:
    """Return status 404 as JSON for every other path."""
    raise HTTPException(404, "Not found")
