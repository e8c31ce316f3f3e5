"""Logs, XComs, rendered templates and receipts of a run contain no secrets and no image data."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}")
PRESIGNED = re.compile(r"X-Amz-Signature|Signature=|AWSAccessKeyId=", re.IGNORECASE)

CASES = [
    "",
    "[sandbox: not_an_image]",
    "[sandbox: bad_base64]",
    "[sandbox: truncated]",
    "[sandbox: invalid_token]",
    "[sandbox: moderation_blocked]",
    "[sandbox: error_in_200]",
    "[sandbox: cloudflare_524]",
    "[sandbox: html_in_200]",
    "[sandbox: no_data]",
]


@pytest.mark.parametrize("deferrable", [False, True])
def test_logs_xcoms_and_receipts_contain_no_secrets(
    airflow: Any, gateway: Any, store: Any, deferrable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    requests = [
        {"prompt": f"{case} a fox {number}", "s3_key": f"{number}.png"} for number, case in enumerate(CASES)
    ]
    run = airflow.run(
        f"secrets_{deferrable}",
        f"""
        GenerateImageOperator.partial(
            task_id="image", s3_bucket="posters", n=2, deferrable={deferrable}
        ).expand_kwargs({requests!r})
        """,
    )
    assert "success" in run.states.values()
    assert "failed" in run.states.values()

    out, err = capfd.readouterr()
    with create_session() as session:
        fields = session.scalars(select(RenderedTaskInstanceFields).filter_by(run_id=run.run_id)).all()
        rendered = json.dumps([field.rendered_fields for field in fields])
    objects = store.objects()
    receipts = b"\n".join(data for key, data in objects.items() if key.endswith(".json")).decode()
    prefixes = [
        base64.b64encode(data[:48]).decode()[:40] for key, data in objects.items() if key.endswith(".png")
    ]
    assert prefixes
    assert len(fields) == len(CASES)

    for place, text in {
        "log": out + err,
        "XCom": json.dumps(list(run.xcoms.values())),
        "rendered templates": rendered,
        "receipts": receipts,
    }.items():
        assert gateway.token not in text, place
        assert not PRESIGNED.search(text), place
        assert not BASE64.search(text), place
        assert not [prefix for prefix in prefixes if prefix in text], place
