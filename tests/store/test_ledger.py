"""The ledger: one of many that race may pay, nothing that others wrote is lost, and the living are told from the dead."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from loopback import Server

from airflow_provider_jojokey.exceptions import JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.store import ledger as ledgers
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.ledger import Ledger, begin, end, may_be_alive, new_attempt, this_worker
from airflow_provider_jojokey.store.receipts import Attempt, Outcome, Owner, Receipt, Worker

from .test_s3 import Sent, client_to, store_of
from .world import BUCKET, IMPATIENT, Bucket

ME = Owner("posters", "monday", "hero")
_numbers = itertools.count()


@pytest.fixture(params=["moto"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def place() -> Destination:
    return Destination(BUCKET, f"{next(_numbers)}/fox.png")


@pytest.fixture(autouse=True)
def _settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "SETTLING", 0.05)


def ledger_in(bucket: Bucket, place: Destination) -> Ledger:
    return Ledger(store_of(bucket.client()), place)


def attempt(**changes: Any) -> Attempt:
    return replace(new_attempt("fox", ME, 60, "spool"), **changes)


def claim(ledger: Ledger, one: Attempt | None = None) -> Attempt:
    one = one or attempt()
    assert ledger.claim(ledger.read().with_attempt(one, "https://host", {"prompt": "a fox"}), one)
    return one


def stored(bucket: Bucket, place: Destination) -> Receipt:
    answer = bucket.client().get_object(Bucket=BUCKET, Key=place.receipt_key)
    return Receipt.from_json(answer["Body"].read())


# --- reading -----------------------------------------------------------------------------------------------------


def test_where_nothing_was_written_there_is_an_empty_receipt(bucket: Bucket, place: Destination) -> None:
    assert ledger_in(bucket, place).read() == Receipt(BUCKET, place.key)


def test_what_was_claimed_is_read_by_others(bucket: Bucket, place: Destination) -> None:
    one = claim(ledger_in(bucket, place))
    receipt = ledger_in(bucket, place).read()
    assert receipt.attempts == (one,)
    assert (receipt.host, receipt.request) == ("https://host", {"prompt": "a fox"})


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"version": 2}', b"\x89PNG"])
def test_a_receipt_that_is_not_understood_is_never_an_empty_one(
    bucket: Bucket, place: Destination, body: bytes
) -> None:
    bucket.client().put_object(Bucket=BUCKET, Key=place.receipt_key, Body=body)
    ledger = ledger_in(bucket, place)
    with pytest.raises(JojoKeyReceiptError) as caught:
        ledger.read()
    assert ledger.uri in caught.value.message
    assert "Nothing was sent or billed" in caught.value.message
    assert caught.value.billed == "no"


@pytest.mark.parametrize(("status", "passing"), [(403, False), (404, False), (500, True), (503, True)])
def test_a_store_that_does_not_tell_is_never_an_empty_receipt(status: int, passing: bool) -> None:
    with Server(lambda exchange: exchange.answer(status)) as server:
        ledger = Ledger(store_of(client_to(server.url)), Destination("posters", "fox.png"))
        with pytest.raises(JojoKeyStoreError) as caught:
            ledger.read()
        with pytest.raises(JojoKeyStoreError):
            ledger.claim(Receipt("posters", "fox.png"), attempt())
        with pytest.raises(JojoKeyStoreError):
            ledger.record(attempt())
    assert caught.value.passing is passing


# --- claiming ----------------------------------------------------------------------------------------------------


def test_of_two_that_have_read_the_same_the_first_may_pay(moto: Bucket, place: Destination) -> None:
    first, second = ledger_in(moto, place), ledger_in(moto, place)
    for ledger in (first, second):
        ledger.read()
    one, other = attempt(), attempt()
    assert first.claim(Receipt(BUCKET, place.key, attempts=(one,)), one)
    assert not second.claim(Receipt(BUCKET, place.key, attempts=(other,)), other)
    assert stored(moto, place).attempts == (one,)


def test_who_was_slower_and_reads_again_may_add_its_own(bucket: Bucket, place: Destination) -> None:
    one = claim(ledger_in(bucket, place))
    other = claim(ledger_in(bucket, place))
    assert stored(bucket, place).attempts == (one, other)


def test_only_a_store_without_conditions_is_waited_for(
    bucket: Bucket, place: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ledgers.time, "sleep", waits.append)
    claim(ledger_in(bucket, place))
    assert waits == ([] if bucket.honours else [0.05])


def test_a_claim_costs_one_request_once_the_store_is_known(moto: Bucket, place: Destination) -> None:
    store = store_of(moto.client())
    claim(Ledger(store, place))
    with Sent(store.client) as sent:
        claim(Ledger(store, Destination(BUCKET, f"{place.key}-2")))
        claim(Ledger(store, Destination(BUCKET, f"{place.key}-2")))
    assert [one.get("if-none-match") for one in sent.headers] == ["*", None]
    assert sent.headers[1]["if-match"]


# --- two processes -----------------------------------------------------------------------------------------------


_RACER = """
import json, sys
import boto3
from botocore.config import Config
from airflow_provider_jojokey.store import ledger as ledgers
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.receipts import Owner
from airflow_provider_jojokey.store.s3 import ImageStore
store = ImageStore(None)
where = json.loads(sys.argv[1])
vars(store)["client"] = boto3.client("s3", config=Config(**where.pop("config")), **where)
ledgers.SETTLING = 0.2
owner = Owner("posters", "monday", "hero")
for line in sys.stdin:
    ledger = ledgers.Ledger(store, Destination(*json.loads(line)))
    one = ledgers.new_attempt("fox", owner, 60, "")
    receipt = ledger.read().with_attempt(one)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([ledger.claim(receipt, one), one.id]), flush=True)
"""


class Racers:
    """Processes of their own that claim the same place at the same moment."""

    def __init__(self, bucket: Bucket) -> None:
        where = {
            "endpoint_url": bucket.endpoint_url,
            "aws_access_key_id": bucket.access_key,
            "aws_secret_access_key": bucket.secret_key,
            "region_name": "us-east-1",
            "config": {**bucket.config, **IMPATIENT},
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _RACER, json.dumps(where)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for _ in range(2)
        ]

    def __enter__(self) -> Racers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate(timeout=30)

    def race(self, key: str) -> list[tuple[bool, str]]:
        self._tell(json.dumps([BUCKET, key]))
        assert self._hear() == ["ready"] * 2
        self._tell("go")
        return [tuple(json.loads(line)) for line in self._hear()]

    def _tell(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")

    def _hear(self) -> list[str]:
        return [process.stdout.readline().strip() for process in self._processes if process.stdout]


def test_of_processes_that_race_for_one_claim_exactly_one_wins(moto: Bucket) -> None:
    with Racers(moto) as racers:
        for number in range(20):
            key = f"race/{number}.png"
            results = racers.race(key)
            assert [won for won, _ in results].count(True) == 1
            (winner,) = stored(moto, Destination(BUCKET, key)).attempts
            assert (True, winner.id) in results


# --- recording ---------------------------------------------------------------------------------------------------


def test_what_became_of_an_attempt_is_written_down(bucket: Bucket, place: Destination) -> None:
    ledger = ledger_in(bucket, place)
    one = claim(ledger)
    done = replace(one, outcome=Outcome.COMPLETE, billed="yes", usage={"total_tokens": 3})
    assert ledger.record(done).attempts == (done,)
    assert stored(bucket, place).attempts == (done,)


def test_what_others_have_written_meanwhile_is_kept(bucket: Bucket, place: Destination) -> None:
    ledger = ledger_in(bucket, place)
    one = claim(ledger)
    other = claim(ledger_in(bucket, place), attempt(owner=replace(ME, run_id="sunday")))
    done = replace(one, outcome=Outcome.COMPLETE)
    assert ledger.record(done).attempts == (done, other)
    assert stored(bucket, place).attempts == (done, other)


def test_a_receipt_that_was_deleted_meanwhile_is_written_again(bucket: Bucket, place: Destination) -> None:
    ledger = ledger_in(bucket, place)
    one = claim(ledger)
    bucket.client().delete_object(Bucket=BUCKET, Key=place.receipt_key)
    done = replace(one, outcome=Outcome.COMPLETE)
    assert done in ledger.record(done).attempts
    assert stored(bucket, place).attempts == (done,)


def test_an_attempt_of_another_process_is_settled_only_as_it_was_read(
    bucket: Bucket, place: Destination
) -> None:
    theirs, mine = ledger_in(bucket, place), ledger_in(bucket, place)
    one = claim(theirs)
    mine.read()
    done = replace(one, outcome=Outcome.COMPLETE)
    theirs.record(done)
    settled = replace(one, outcome=Outcome.NOT_BILLED)
    assert mine.record(settled, instead_of=one).attempts == (done,)
    assert stored(bucket, place).attempts == (done,)
    newer = replace(done, note="looked at")
    assert mine.record(newer, instead_of=done).attempts == (newer,)


def test_where_conditions_hold_recording_reads_nothing(moto: Bucket, place: Destination) -> None:
    ledger = ledger_in(moto, place)
    one = claim(ledger)
    reads: list[str] = []
    client = ledger.store.client
    client.meta.events.register(
        "before-send.s3.GetObject", note := lambda request, **_: reads.append(request.url)
    )
    try:
        ledger.record(replace(one, outcome=Outcome.COMPLETE))
    finally:
        client.meta.events.unregister("before-send.s3.GetObject", note)
    assert reads == []


def test_a_receipt_that_broke_meanwhile_is_not_overwritten(bucket: Bucket, place: Destination) -> None:
    ledger = ledger_in(bucket, place)
    one = claim(ledger)
    bucket.client().put_object(Bucket=BUCKET, Key=place.receipt_key, Body=b"broken")
    with pytest.raises(JojoKeyReceiptError):
        ledger.record(replace(one, outcome=Outcome.COMPLETE))
    assert bucket.client().get_object(Bucket=BUCKET, Key=place.receipt_key)["Body"].read() == b"broken"


def test_a_receipt_that_others_write_all_the_time_is_given_up_for_now(place: Destination) -> None:
    document = Receipt(BUCKET, place.key).to_json()

    def behave(exchange: Any) -> None:
        if exchange.request.method == "GET":
            exchange.answer(200, document, ETag='"1"')
        else:
            exchange.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

    with Server(behave) as server:
        ledger = Ledger(store_of(client_to(server.url)), place)
        with pytest.raises(JojoKeyStoreError) as caught:
            ledger.record(attempt())
    assert caught.value.passing


# --- who is alive ------------------------------------------------------------------------------------------------


def at(worker: Worker, lease: float = 60) -> Attempt:
    return attempt(worker=worker, lease_until=datetime.now(UTC) + timedelta(seconds=lease))


def worker_of(pid: int) -> Worker:
    return replace(this_worker(), pid=pid, started=psutil.Process(pid).create_time())


def test_an_attempt_of_this_process_is_alive_while_it_says_so() -> None:
    one = attempt()
    assert not may_be_alive(one)
    begin(one)
    assert may_be_alive(one)
    assert not may_be_alive(attempt())
    end(one)
    end(one)
    assert not may_be_alive(one)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("lease", [60, -60])
def test_an_attempt_of_a_live_process_is_alive_whatever_its_lease(
    sleeper: subprocess.Popen[bytes], lease: float
) -> None:
    assert may_be_alive(at(worker_of(sleeper.pid), lease))


def test_an_attempt_of_a_dead_process_is_dead_whatever_its_lease(sleeper: subprocess.Popen[bytes]) -> None:
    worker = worker_of(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not may_be_alive(at(worker, 60))


def test_a_process_that_was_killed_and_not_yet_buried_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    worker = worker_of(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it is dead now, and stays a zombie
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
    assert not may_be_alive(at(worker))


def test_a_process_that_is_stopped_may_go_on(sleeper: subprocess.Popen[bytes]) -> None:
    worker = worker_of(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert may_be_alive(at(worker))


def test_another_process_that_got_the_same_number_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    worker = worker_of(sleeper.pid)
    assert not may_be_alive(at(replace(worker, started=worker.started - 3600)))
    assert not may_be_alive(at(replace(this_worker(), started=this_worker().started - 3600)))


@pytest.mark.parametrize(("lease", "alive"), [(60, True), (-1, False)])
def test_on_another_host_an_attempt_counts_as_alive_until_its_lease_ends(lease: float, alive: bool) -> None:
    elsewhere = replace(this_worker(), host="elsewhere pid:[1]")
    assert may_be_alive(at(elsewhere, lease)) is alive


def test_another_process_namespace_on_this_host_is_another_host() -> None:
    host = this_worker().host
    assert "pid:[" in host
    neighbour = replace(this_worker(), host=f"{host}0", pid=2**22 + 1)
    assert may_be_alive(at(neighbour))
    assert not may_be_alive(at(neighbour, -1))


def test_a_process_that_may_not_be_looked_at_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    worker = replace(this_worker(), pid=1, started=0.0)
    monkeypatch.setattr(psutil, "Process", refuse)
    assert may_be_alive(at(worker))


def test_a_fork_is_another_process() -> None:
    parent = this_worker()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps([this_worker().pid, this_worker() == parent]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader, "rb") as told:
        assert json.loads(told.read()) == [pid, False]


def test_a_new_attempt_is_this_processes_and_open() -> None:
    one = new_attempt("fox", ME, 60, "spool")
    assert (one.outcome, one.billed, one.owner, one.fingerprint) == (Outcome.OPEN, "unknown", ME, "fox")
    assert one.worker == replace(this_worker(), spool="spool")
    assert one.lease_until - one.started_at == timedelta(seconds=60)
    assert one.started_at.tzinfo is not None
    assert one.id != new_attempt("fox", ME, 60, "spool").id
