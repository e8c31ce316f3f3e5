"""What a task tells OpenLineage. Imported by OpenLineage's listener only: without it, nothing here is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attr
from airflow.providers.common.compat.openlineage.facet import (
    OutputDataset,
    OutputStatisticsOutputDatasetFacet,
    RunFacet,
)
from airflow.providers.openlineage.extractors import OperatorLineage

from airflow_provider_jojokey.store.keys import split_uri

SCHEMA = "JojoKeyRunFacet-1-0-0.json"
"""The facet's schema, which the API server hands out beside the UI's files."""
RUN_FACET = "jojokey"
_SAME = ("model", "size", "quality", "seconds", "receipt", "manifest", "error")


@attr.define
class JojoKeyRunFacet(RunFacet):
    """What was asked for and what it cost.

    :param model: the model
    :param size: ``"WIDTHxHEIGHT"`` in pixels, or ``"auto"``
    :param quality: as in the API
    :param images: how many images there are
    :param reused: whether an earlier attempt had paid for them
    :param inputTokens: billed to the task in its Dag run
    :param outputTokens: billed to the task in its Dag run
    :param totalTokens: billed to the task in its Dag run
    :param seconds: how long the gateway took
    :param requestId: the gateway's
    :param receipt: the receipt's ``s3://`` place
    :param manifest: the ``s3://`` place of a batch's list of all its images
    :param error: the exception's class, where the task failed
    """

    model: str | None = attr.field(default=None)
    size: str | None = attr.field(default=None)
    quality: str | None = attr.field(default=None)
    images: int = attr.field(default=0)
    reused: bool = attr.field(default=False)
    inputTokens: int | None = attr.field(default=None)
    outputTokens: int | None = attr.field(default=None)
    totalTokens: int | None = attr.field(default=None)
    seconds: float | None = attr.field(default=None)
    requestId: str | None = attr.field(default=None)
    receipt: str | None = attr.field(default=None)
    manifest: str | None = attr.field(default=None)
    error: str | None = attr.field(default=None)

    @staticmethod
    def _get_schema() -> str:
        from airflow.providers.common.compat.sdk import conf

        base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        if not base.startswith(("http://", "https://")):
            base = "http://localhost:8080"  # where an API server is that was told nothing else
        return f"{base}/jojokey/static/{SCHEMA}#/$defs/JojoKeyRunFacet"


def lineage_of(
    told: Mapping[str, Any] | None, uris: Iterable[str] | None = None
) -> OperatorLineage[Any, Any]:
    """Return the images as output datasets, and the model and the cost as a facet of the run.

    :param told: what the task has told the UI, see :mod:`airflow_provider_jojokey.results`; ``None`` where it
        has not come that far
    :param uris: the images' ``s3://`` places, where ``told`` does not list all
    """
    if told is None:
        return OperatorLineage()
    listed = {image["uri"]: image for image in told["images"]}
    return OperatorLineage(
        outputs=[_dataset(uri, listed.get(uri)) for uri in dict.fromkeys([*listed, *(uris or ())])],
        run_facets={RUN_FACET: _facet(told)},
    )


def _dataset(uri: str, image: Mapping[str, Any] | None) -> OutputDataset:
    bucket, key = split_uri(uri)
    facets: dict[str, Any] = {}
    if image is not None:
        facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=image["bytes"], fileCount=1)
    return OutputDataset(namespace=f"s3://{bucket}", name=key, outputFacets=facets)


def _facet(told: Mapping[str, Any]) -> JojoKeyRunFacet:
    usage = told.get("usage") or {}
    facts: dict[str, Any] = {name: told.get(name) for name in _SAME}
    return JojoKeyRunFacet(
        images=told["count"],
        reused=bool(told.get("reused")),
        inputTokens=usage.get("input_tokens"),
        outputTokens=usage.get("output_tokens"),
        totalTokens=usage.get("total_tokens"),
        requestId=told.get("request_id"),
        **facts,
    )
