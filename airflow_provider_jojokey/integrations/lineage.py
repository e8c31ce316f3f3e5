"""The lineage of a task's images. Only OpenLineage's listener imports this module."""

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

from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.store.keys import split_uri

SCHEMA = "JojoKeyRunFacet-1-0-0.json"
"""The facet's schema, which the API server serves with the UI's files."""
RUN_FACET = "jojokey"
_COPIED_FIELDS = ("model", "size", "quality", "cost", "seconds", "receipt", "manifest", "error")


@attr.define
class JojoKeyRunFacet(RunFacet):
    """The request and its cost.

    :param model: the model
    :param size: ``"WIDTHxHEIGHT"`` in pixels, or ``"auto"``
    :param quality: as in the API
    :param images: number of images
    :param reused: whether an earlier attempt had paid for them
    :param inputTokens: input tokens billed to the task in its Dag run
    :param outputTokens: output tokens billed to the task in its Dag run
    :param totalTokens: tokens billed to the task in its Dag run; these three are ``None`` if they are unknown
    :param cost: what the task has cost in its Dag run, as in the manifest; ``None`` if it is not recorded
    :param seconds: duration of the request
    :param requestId: the gateway's request ID
    :param receipt: the receipt's ``s3://`` URI
    :param manifest: the ``s3://`` URI of a batch's manifest
    :param error: the exception's class, if the task failed
    """

    model: str | None = attr.field(default=None)
    size: str | None = attr.field(default=None)
    quality: str | None = attr.field(default=None)
    images: int = attr.field(default=0)
    reused: bool = attr.field(default=False)
    inputTokens: int | None = attr.field(default=None)
    outputTokens: int | None = attr.field(default=None)
    totalTokens: int | None = attr.field(default=None)
    cost: dict[str, Any] | None = attr.field(default=None)
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
            base = "http://localhost:8080"  # the API server's default
        return f"{base}/jojokey/static/{SCHEMA}#/$defs/JojoKeyRunFacet"


def lineage_of(
    result: Mapping[str, Any] | None, uris: Iterable[str] | None = None
) -> OperatorLineage[Any, Any]:
    """Return the images as output datasets, and the model and cost as a run facet.

    :param result: the task's result for the UI, see :mod:`airflow_provider_jojokey.results`; ``None`` if it ended
        before there was one
    :param uris: the images' ``s3://`` URIs, if ``result`` does not list all of them
    """
    if result is None:
        return OperatorLineage()
    listed = {image["uri"]: image for image in result["images"]}
    return OperatorLineage(
        outputs=[_dataset(uri, listed.get(uri)) for uri in dict.fromkeys([*listed, *(uris or ())])],
        run_facets={RUN_FACET: _facet(result)},
    )


def _dataset(uri: str, image: Mapping[str, Any] | None) -> OutputDataset:
    bucket, key = split_uri(uri)
    facets: dict[str, Any] = {}
    if image is not None:
        facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=image["bytes"], fileCount=1)
    return OutputDataset(namespace=f"s3://{bucket}", name=key, outputFacets=facets)


def _facet(result: Mapping[str, Any]) -> JojoKeyRunFacet:
    known = Result.from_xcom(result)
    # The sum is 0 if nothing is known about any of its parts.
    usage = {} if known is None or known.tokens is None else known.usage
    facts: dict[str, Any] = {name: result.get(name) for name in _COPIED_FIELDS}
    return JojoKeyRunFacet(
        images=result["count"],
        reused=bool(result.get("reused")),
        inputTokens=usage.get("input_tokens"),
        outputTokens=usage.get("output_tokens"),
        totalTokens=usage.get("total_tokens"),
        requestId=result.get("request_id"),
        **facts,
    )
