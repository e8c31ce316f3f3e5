"""200 posters on docker-compose.yaml with two workers; a worker and the triggerer are killed in the middle."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_jojokey.payments.attempt import Outcome
from airflow_provider_jojokey.payments.receipt import Receipt, total_usage
from airflow_provider_jojokey.sandbox import ChargeRecord
from tests.cluster.campaign import BATCHES, DEFERRED, ITEMS
from tests.support.cluster import Cluster, cluster
from tests.support.patience import PATIENCE

POSTERS = {f"batch/{batch}/{item}.png" for batch in range(BATCHES) for item in range(ITEMS)} | {
    f"deferred/{item}.png" for item in range(DEFERRED)
}
ON_THE_WAY = 2.0
"""Time limit between a charge and its receipt, in seconds, on a busy machine."""


def key_of(prompt: str) -> str:
    words = prompt.split()
    return f"batch/{words[1]}/{words[3]}.png" if words[0] == "batch" else f"deferred/{words[2]}.png"


def finished(run: Cluster, run_id: str) -> str | None:
    state = run.get(f"/dags/campaign/dagRuns/{run_id}")["state"]
    return state if state in ("success", "failed") else None


class Sandbox:
    """Client of the sandbox gateway, a process of the cluster."""

    def __init__(self, url: str) -> None:
        self._url = url

    def charges(self) -> list[ChargeRecord]:
        return [ChargeRecord.from_json(row) for row in self._get("charges")["billed"]]

    def in_flight(self) -> list[str]:
        """Return the keys of requests that are not charged yet."""
        billed = Counter(key_of(record.prompt) for record in self.charges())
        requested = Counter(key_of(request["prompt"]) for request in self._get("requests")["requests"])
        return list((requested - billed).elements())

    def _get(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/sandbox/{what}", timeout=PATIENCE) as answer:
            return json.load(answer)


def test_posters_exist_and_receipts_match_the_bill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    shutil.copy(Path(__file__).with_name("campaign.py"), dags)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        # The sandbox gateway is fast, so its log is complete after seconds.
        settings = {"AIRFLOW__JOJOKEY__LONGEST_GENERATION": "10"}
        with cluster(tmp_path, dags, {"s3": port}, settings) as run:
            s3 = boto3.client(
                "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
                aws_access_key_id=run.native.secrets["S3_ACCESS_KEY"],
                aws_secret_access_key=run.native.secrets["S3_SECRET_KEY"],
            )  # fmt: skip
            sandbox = Sandbox(run.native.url("sandbox"))
            kills = campaign(run, sandbox)
            check(run, sandbox, s3, kills, capsys)
    finally:
        moto.stop()


def campaign(run: Cluster, sandbox: Sandbox) -> list[tuple[float, float]]:
    """Run the campaign with its accidents, and return the start and end of each."""
    run.wait("the Dag is there", lambda: run.get("/dags/campaign"), 120)
    run_id = run.post("/dags/campaign/dagRuns", {"dag_run_id": "spring", "logical_date": None})["dag_run_id"]
    run.wait("posters are paid for", lambda: len(sandbox.charges()) >= 30, 300)
    kills = [killed(run, "worker-1")]
    run.wait("deferred posters are being made", lambda: deferred_in_flight(sandbox), 300)
    kills.append(killed(run, "triggerer"))
    run.wait_until_healthy("worker-1", "triggerer")
    run.wait("the run ends", lambda: finished(run, run_id), 900)

    # Requests in flight were charged and lost. The user permits to pay again.
    run.post("/variables", {"key": "on_unknown_outcome", "value": "regenerate"})
    if finished(run, run_id) == "failed":
        run.post(
            "/dags/campaign/clearTaskInstances",
            {"dag_run_id": run_id, "dry_run": False, "only_failed": True, "reset_dag_runs": True},
        )
        run.wait("the run ends", lambda: finished(run, run_id), 900)
    assert finished(run, run_id) == "success"
    return kills


def killed(run: Cluster, name: str) -> tuple[float, float]:
    """Kill a process and start it again, as a supervisor would."""
    process = run.processes[name]
    began = time.time()
    process.kill()
    ended = time.time()
    process.start()
    return began, ended


def deferred_in_flight(sandbox: Sandbox) -> bool:
    return sum(key.startswith("deferred/") for key in sandbox.in_flight()) >= 3


def check(
    run: Cluster,
    sandbox: Sandbox,
    s3: Any,
    kills: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run.wait("nothing is in flight", lambda: not sandbox.in_flight(), 60)
    charges = sandbox.charges()
    # A request was lost if it was in flight when a process was killed.
    lost = Counter(
        key_of(record.prompt)
        for record in charges
        if any(record.started <= ended and record.time + ON_THE_WAY >= began for began, ended in kills)
    )
    objects: dict[str, bytes] = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="posters"):
        for entry in page.get("Contents", []):
            objects[entry["Key"]] = s3.get_object(Bucket="posters", Key=entry["Key"])["Body"].read()
    posters = {key for key in objects if not key.startswith("_jojokey/")}
    receipts = {
        key: Receipt.from_json(objects[f"_jojokey/{key}.json"])
        for key in POSTERS
        if f"_jojokey/{key}.json" in objects
    }
    payments = Counter(key_of(record.prompt) for record in charges)
    again = {key: count for key, count in payments.items() if count > 1}
    paid = sum(record.total_tokens for record in charges)
    attempts = [attempt for receipt in receipts.values() for attempt in receipt.attempts]
    known = total_usage(attempt.usage for attempt in attempts)["total_tokens"]
    tokens_of = {key_of(record.prompt): record.total_tokens for record in charges}
    unknown = [
        key
        for key, receipt in receipts.items()
        for attempt in receipt.attempts
        if attempt.outcome in (Outcome.UNKNOWN, Outcome.BILLED) and not attempt.usage
    ]
    usages = [run.xcom(task, "usage") for task in run.tasks("campaign", "spring")]
    reported = total_usage(usages)["total_tokens"]
    with capsys.disabled():
        print(
            f"\n{len(posters)} posters, {len(charges)} payments; {sum(lost.values())} requests were in flight "
            f"when a process was killed, and {len(again)} posters were paid again for it on request; "
            f"tokens: charges {paid}, receipts {known}, usage XComs {reported}, unknown for {len(unknown)} attempts"
        )

    assert posters == POSTERS
    assert set(receipts) == POSTERS
    assert all(receipt.attempts[-1].outcome is Outcome.COMPLETE for receipt in receipts.values())
    assert set(payments) == POSTERS
    assert set(again) <= set(lost), "only what was in flight on a killed process is paid again, on request"
    assert all(count == 2 for count in again.values())
    assert reported == known
    assert paid == known + sum(tokens_of[key] for key in unknown)
