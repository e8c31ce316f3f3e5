"""Links from a task's details to its images in Airflow's UI and in the AWS console.

When the task has ended, Airflow calls these classes on the worker and stores the links as XComs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_jojokey.store.keys import AccessPoint, split_uri

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

_CONSOLES = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
_ACCESS_POINT_PAGES = {"s3": "ap", "s3-object-lambda": "olap"}
"""The console's pages by service. Outposts and multi-region access points have no page that lists objects."""
_ALIASES = ("-s3alias", "--ol-s3", "--op-s3", "--x-s3", "--xa-s3", ".mrap")
"""Suffixes of names that S3 accepts as buckets, but the console's bucket pages don't."""


class ImagesLink(BaseOperatorLink):
    """Links to the task's tab "Images"."""

    name: ClassVar[str] = "Images"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the tab's path in Airflow's UI.

        :param operator: the task's operator
        :param ti_key: the task instance
        """
        from airflow_provider_jojokey.links.paths import base_path, tab_path

        return base_path() + tab_path(ti_key.dag_id, ti_key.run_id, ti_key.task_id, ti_key.map_index)


class S3ConsoleLink(BaseOperatorLink):
    """Links to the images in the AWS console, if their bucket is on AWS."""

    name: ClassVar[str] = "S3 console"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the console's URL, or an empty string if there are no images or they are not on AWS.

        :param operator: the task's operator
        :param ti_key: the task instance
        """
        from airflow.providers.common.compat.sdk import XCom

        from airflow_provider_jojokey.results import XCOM_KEY, Result

        # The operator that has just run knows its result. Without it, each task would read its own XCom again.
        value = getattr(operator, "_ui_result", None) or XCom.get_value(ti_key=ti_key, key=XCOM_KEY)
        result = Result.from_xcom(value)
        if result is None or not result.images:
            return ""
        store = vars(operator).get("store")
        extra = None if store is None else store.connection_extra
        location = _aws_location(_extra_of(result.aws_conn_id) if extra is None else extra)
        if location is None:
            return ""
        return s3_console_url([image.uri for image in result.images], *location) or ""


def _extra_of(aws_conn_id: str | None) -> Mapping[str, Any]:
    """Return a connection's extra, without importing boto3: a deferred task need not load it for a link."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

    try:
        if aws_conn_id is not None:
            return BaseHook.get_connection(aws_conn_id).extra_dejson
    except AirflowNotFoundException:
        pass  # use boto3's own settings, like S3Hook
    return {}


def names_endpoint(extra: Mapping[str, Any]) -> bool:
    """Return whether a connection's extra has an endpoint of its own, as for stores other than AWS."""
    service = (extra.get("service_config") or {}).get("s3") or {}
    return bool(extra.get("endpoint_url") or service.get("endpoint_url"))


def _aws_location(extra: Mapping[str, Any]) -> tuple[str | None, str] | None:
    """Return AWS region and partition by a connection's extra; ``None`` if the store is not AWS."""
    if names_endpoint(extra):
        return None
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return None
    region = extra.get("region_name") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    partitions = {"cn": "aws-cn", "us-gov": "aws-us-gov"}
    return region, next(
        (name for start, name in partitions.items() if f"{region}".startswith(f"{start}-")), "aws"
    )


def s3_console_url(uris: Sequence[str], region: str | None, partition: str) -> str | None:
    """Return the URL of one object in the AWS console, or of the folder of several objects.

    Objects behind an access point are on the page of the access point.

    :param uris: ``s3://`` URIs
    :param region: the bucket's region, if known; the ARN of an access point contains its own
    :param partition: ``aws``, ``aws-cn`` or ``aws-us-gov``
    :return: ``None`` if the console has no known page for them
    """
    if not uris:
        return None
    bucket, key = split_uri(uris[0])
    point = AccessPoint.of(bucket)
    console = _CONSOLES.get(point.partition if point else partition)
    if console is None or bucket.endswith(_ALIASES):
        return None
    folder = key.rpartition("/")[0]
    prefix = {"prefix": f"{folder}/"} if folder else {}
    if point is not None:
        page = _ACCESS_POINT_PAGES.get(point.service)
        if page is None or not point.region:
            return None
        query = urlencode({"region": point.region, **prefix})
        return f"https://{console}/s3/{page}/{point.account}/{point.name}?{query}"
    known = {"region": region} if region and region != "aws-global" else {}
    if len(uris) == 1:
        return f"https://{console}/s3/object/{bucket}?{urlencode({**known, 'prefix': key})}"
    return f"https://{console}/s3/buckets/{bucket}?{urlencode({**known, **prefix})}"
