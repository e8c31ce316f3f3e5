"""What Airflow's worker sends to OpenLineage, StatsD and an OpenTelemetry collector, all of them real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from airflow.version import version as airflow_version

from airflow_provider_jojokey.cost import PUBLISHED
from airflow_provider_jojokey.integrations import telemetry
from tests.operators.receivers import Collector, Sample, Span, StatsD
from tests.support.patience import PATIENCE

AIRFLOW_3_1 = airflow_version.startswith("3.1.")
AIRFLOWS = ("dag_run.", "task_run.", "worker.")
"""What the names of Airflow's own spans begin with."""
ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "airflow_provider_jojokey/plugins/static/JojoKeyRunFacet-1-0-0.json"
PROMPT = "a fox that nobody may hear of"
DAG_FILE = f"""
from airflow.sdk import DAG
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

common = {{"s3_bucket": "posters", "size": "1024x640"}}
with DAG("observed", schedule=None):
    GenerateImageOperator(task_id="image", prompt="{PROMPT}", s3_key="fox.png", n=2, **common)
    GenerateImageOperator(task_id="broken", prompt="{PROMPT} [sandbox: truncated]", s3_key="b.png", n=2, **common)
    GenerateImageOperator(task_id="again", prompt="paid for before", s3_key="old.png", reuse="always", **common)
    GenerateImageBatchOperator(
        task_id="batch", requests=[{{"prompt": "an owl", "s3_key": f"{{n}}.png"}} for n in range(3)], **common
    )
with DAG("collected", schedule=None):
    GenerateImageOperator(task_id="image", prompt="collected", s3_key="collected.png", **common)
"""


@dataclass
class Observed:
    """What was received of one run."""

    run_id: str
    states: dict[str, str]
    samples: list[Sample]
    spans: list[Span]
    events: list[dict[str, Any]]
    charges: list[Any]
    """What was billed to it."""

    def total(self, name: str, **tags: str) -> int:
        """Add up a counter's samples."""
        return sum(
            int(one.value)
            for one in self.samples
            if one.name == f"airflow.{name}" and tags.items() <= one.tags.items()
        )

    def order(self, key: str) -> Span:
        """Return the span of the order that an image was made for."""
        (upload,) = (one for one in self.spans if one.attributes.get("aws.s3.key") == key)
        (order,) = (one for one in self.spans if one.id == upload.parent)
        assert order.name == "jojokey"
        return order

    def request(self, key: str) -> Span:
        """Return the span of the request that an image was paid with."""
        (request,) = (one for one in self.under(self.order(key)) if one.name != "upload")
        assert request.name == "generate_content gpt-image-2"
        return request

    def under(self, span: Span) -> list[Span]:
        return [one for one in self.spans if one.parent == span.id]


@pytest.fixture(scope="module")
def work(
    airflow: Any, _gateway: Any, _stores: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a Dag in a worker of its own, and returns what came of it."""
    path = airflow.write("observed.py", DAG_FILE)
    _gateway.reset()
    connection = {"conn_type": "jojokey", "host": _gateway.url, "password": _gateway.token}

    def run(dag_id: str, *how: str, **environment: str) -> dict[str, Any]:
        outcome = tmp_path_factory.mktemp(dag_id) / "outcome.json"
        script = Path(__file__).parent / "supervised.py"
        done = subprocess.run(
            [sys.executable, str(script), dag_id, str(path), str(outcome), *how],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(outcome.read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(_stores["moto"].connection))
        yield run


@pytest.fixture(scope="module")
def observed(
    work: Callable[..., dict[str, Any]], _gateway: Any, tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    """A run with OpenLineage, StatsD and traces: Airflow's, or on 3.1 those that the worker's starter asks for."""
    how = ["instrumented"] if AIRFLOW_3_1 else []
    lineage = tmp_path_factory.mktemp("lineage") / "events.jsonl"
    pay_before()
    billed_before = len(_gateway.charges)
    statsd = StatsD()
    with Collector() as collector:
        result = work(
            "observed",
            *how,
            AIRFLOW__OPENLINEAGE__TRANSPORT=json.dumps(
                {"type": "file", "log_file_path": str(lineage), "append": True}
            ),
            AIRFLOW__METRICS__STATSD_ON="True",
            AIRFLOW__METRICS__STATSD_HOST="127.0.0.1",
            AIRFLOW__METRICS__STATSD_PORT=str(statsd.port),
            AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED="True",
            AIRFLOW__TRACES__OTEL_ON=str(not AIRFLOW_3_1),
            **otlp(collector),
        )
    return Observed(
        **result,
        samples=statsd.samples(),
        spans=collector.spans,
        events=[json.loads(line) for line in lineage.read_text().splitlines()],
        charges=_gateway.charges[billed_before:],
    )


@pytest.fixture(scope="module")
def collected(work: Callable[..., dict[str, Any]]) -> Collector:
    """What OpenTelemetry has of a run: Airflow's metrics, and spans that only the worker's starter has asked for."""
    with Collector() as collector:
        work("collected", "instrumented", AIRFLOW__METRICS__OTEL_ON="True", **otlp(collector))
    return collector


def pay_before() -> None:
    """Pay for an image that a task will find."""
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

    job = ImageJob(
        ImageRequest("paid for before", size="1024x640"),
        Destination("posters", "old.png"),
        Owner("another", "run", "task", -1, 1),
        reuse="always",
    )
    generate_images(job, Services(JojoKeyHook(), ImageStore("aws_default"), Settings.from_airflow_config()))


def otlp(collector: Collector) -> dict[str, str]:
    """Return the environment of whoever shall send to a collector."""
    address = urlsplit(collector.url)
    return {
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "AIRFLOW__METRICS__OTEL_HOST": str(address.hostname),  # Airflow 3.1 knows of no other address
        "AIRFLOW__METRICS__OTEL_PORT": str(address.port),
    }


def test_all_went_as_it_should(observed: Observed) -> None:
    assert observed.states == {"image": "success", "broken": "failed", "again": "success", "batch": "success"}


def test_openlineage_is_told_the_images_the_model_and_the_tokens(observed: Observed) -> None:
    ended = {
        event["job"]["name"]: event for event in observed.events if event["eventType"] in ("COMPLETE", "FAIL")
    }
    image = ended["observed.image"]
    assert [(one["namespace"], one["name"]) for one in image["outputs"]] == [
        ("s3://posters", "fox-0.png"),
        ("s3://posters", "fox-1.png"),
    ]
    assert all("schema" not in one["facets"] for one in image["outputs"])
    assert all(one["outputFacets"]["outputStatistics"]["size"] > 1000 for one in image["outputs"])
    facet = image["run"]["facets"]["jojokey"]
    (billed,) = (one for one in observed.charges if one.prompt == PROMPT)
    assert (facet["model"], facet["images"], facet["totalTokens"]) == ("gpt-image-2", 2, billed.total_tokens)

    broken = ended["observed.broken"]
    assert broken["eventType"] == "FAIL"
    assert [one["name"] for one in broken["outputs"]] == ["b-0.png"]
    assert broken["run"]["facets"]["jojokey"]["error"] == "JojoKeyReplyError"

    assert [one["name"] for one in ended["observed.batch"]["outputs"]] == ["0.png", "1.png", "2.png"]
    assert ended["observed.again"]["run"]["facets"]["jojokey"]["reused"] is True


def test_the_run_facet_names_its_schema_and_keeps_to_it(observed: Observed) -> None:
    schema = json.loads(SCHEMA.read_text())
    own = schema["$defs"]["JojoKeyRunFacet"]["allOf"][1]
    facets = [one["run"]["facets"]["jojokey"] for one in observed.events if "jojokey" in one["run"]["facets"]]
    assert len(facets) == 4
    for facet in facets:
        assert facet["_schemaURL"].endswith(f"/jojokey/static/{SCHEMA.name}#/$defs/JojoKeyRunFacet")
        jsonschema.validate(facet, own)
        assert set(facet) <= {"_producer", "_schemaURL", *own["properties"]}


def test_statsd_gets_what_was_made_and_what_it_cost(observed: Observed) -> None:
    tags = {"dag_id": "observed", "model": "gpt-image-2", "quality": "low"}
    assert observed.total(telemetry.IMAGES, **tags) == 2 + 1 + 3  # one of two arrived of what broke off
    assert observed.total(telemetry.IMAGES_REUSED, **tags) == 1
    assert observed.total(telemetry.ERRORS, **tags, error="JojoKeyReplyError") == 1
    assert observed.total(telemetry.ERRORS) == 1
    assert observed.total(telemetry.UPLOAD_BYTES) > 6000
    for name in (telemetry.REQUEST_DURATION, telemetry.UPLOAD_DURATION):
        times = [float(one.value) for one in observed.samples if one.name == f"airflow.{name}"]
        assert times
        assert min(times) > 0


def test_tokens_in_metrics_are_those_that_were_billed(observed: Observed) -> None:
    for name, kind in (
        (telemetry.INPUT_TOKENS, "input_tokens"),
        (telemetry.OUTPUT_TOKENS, "output_tokens"),
    ):
        assert observed.total(name) == sum(getattr(one, kind) for one in observed.charges)
    costs = [
        PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in observed.charges
    ]
    assert observed.total(telemetry.COST, currency="USD") == sum(
        round(cost.nanos / 1000) for cost in costs if cost
    )


def test_what_is_in_flight_goes_up_and_down_again(observed: Observed) -> None:
    changes = [one.value for one in observed.samples if one.name == f"airflow.{telemetry.IN_FLIGHT}"]
    assert sorted(set(changes)) == ["+1", "-1"]
    assert changes.count("+1") == changes.count("-1") == 5


def test_names_and_tags_are_few_whatever_is_asked_for(observed: Observed) -> None:
    own = [one for one in observed.samples if one.name.startswith("airflow.jojokey")]
    assert {one.name.removeprefix("airflow.") for one in own} == set(names())
    assert {tag for one in own for tag in one.tags} == {"dag_id", "model", "quality", "error", "currency"}
    assert "fox" not in repr(own)
    assert observed.run_id not in repr(own)


def test_a_span_each_for_request_decoding_and_upload_belongs_to_the_order(observed: Observed) -> None:
    order, request = observed.order("fox-0.png"), observed.request("fox-0.png")
    assert order.attributes == {"jojokey.images.requested": 2}
    uploads = [one for one in observed.under(order) if one is not request]
    assert [one.name for one in uploads] == ["upload", "upload"]
    assert {one.attributes["aws.s3.key"] for one in uploads} == {"fox-0.png", "fox-1.png"}
    assert [one.name for one in observed.under(request)] == ["decode"]
    (billed,) = (one for one in observed.charges if one.prompt == PROMPT)
    told = {name: value for name, value in request.attributes.items() if name.startswith("gen_ai.")}
    assert told == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": "jojokey",
        "gen_ai.request.model": "gpt-image-2",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.response.model": "gpt-image-2",
        "gen_ai.response.id": billed.request_id,
        "gen_ai.usage.input_tokens": billed.input_tokens,
        "gen_ai.usage.output_tokens": billed.output_tokens,
    }


def test_the_attributes_have_the_names_that_opentelemetry_gives_them(observed: Observed) -> None:
    from opentelemetry.semconv._incubating.attributes import aws_attributes, gen_ai_attributes

    known = [*vars(gen_ai_attributes).values(), *vars(aws_attributes).values()]
    used = {name for one in observed.spans for name in one.attributes if name.startswith(("gen_ai.", "aws."))}
    assert used
    younger = {"gen_ai.request.stream"} if AIRFLOW_3_1 else set()  # than the packages of Airflow 3.1's time
    assert used - younger <= {one for one in known if isinstance(one, str)}


def test_each_image_of_a_batch_is_an_order_with_a_request_of_its_own(observed: Observed) -> None:
    assert len({observed.request(f"{n}.png").id for n in range(3)}) == 3


@pytest.mark.skipif(
    AIRFLOW_3_1,
    reason="Airflow 3.1 has its span of a task in the scheduler, and none in the process in which the task runs",
)
def test_an_order_belongs_to_the_tasks_span(observed: Observed) -> None:
    made = {"image": ["fox-0.png"], "broken": ["b-0.png"], "batch": ["0.png", "1.png", "2.png"]}
    for task, keys in made.items():
        (span,) = (one for one in observed.spans if one.name == f"worker.{task}")
        assert all(observed.order(key) in observed.under(span) for key in keys), task


def test_a_failed_request_is_an_error_by_its_class_without_its_message(observed: Observed) -> None:
    request = observed.request("b-0.png")
    assert request.error
    assert request.attributes["error.type"] == "JojoKeyReplyError"
    assert request.attributes["jojokey.billed"] == "yes"
    own = [one for one in observed.spans if one.name in ("jojokey", "decode", "upload", request.name)]
    assert "nobody may hear" not in repr(own)


def test_opentelemetry_gets_the_same_metrics(collected: Collector) -> None:
    (images,) = collected.metrics[f"airflow.{telemetry.IMAGES}"]
    assert images == {
        "value": 1,
        "tags": {"dag_id": "collected", "model": "gpt-image-2", "quality": "low"},
    }
    (tokens,) = collected.metrics[f"airflow.{telemetry.OUTPUT_TOKENS}"]
    assert tokens["value"] > 100
    (duration,) = collected.metrics[f"airflow.{telemetry.REQUEST_DURATION}"]
    assert duration["value"] > 0


def test_a_worker_that_was_started_with_opentelemetry_sends_all_spans_of_a_task(collected: Collector) -> None:
    own = {one.name: one for one in collected.spans if not one.name.startswith(AIRFLOWS)}
    assert set(own) == {"jojokey", "generate_content gpt-image-2", "decode", "upload"}
    assert len({one.trace for one in own.values()}) == 1
    above = [one.name for one in collected.spans if one.id == own["jojokey"].parent]
    assert above == ([] if AIRFLOW_3_1 else ["worker.image"])


def test_no_token_and_no_prompt_reaches_anyone(observed: Observed, collected: Collector) -> None:
    spans = [one for one in (*observed.spans, *collected.spans) if not one.name.startswith(AIRFLOWS)]
    told = repr((observed.samples, collected.metrics, spans))
    assert "nobody may hear" not in told
    assert "sk-" not in told


def test_switched_off_it_imports_nothing_and_calls_nobody() -> None:
    code = (
        "import sys\nfrom airflow_provider_jojokey.integrations.telemetry import Observer, observe\n"
        "before = set(sys.modules)\n"
        "from airflow.providers.common.compat.sdk import conf\nconf.getboolean('metrics', 'statsd_on')\n"
        "airflows = set(sys.modules)\n"
        "with observe(None) as observer: assert type(observer) is Observer, observer\n"
        "print('ADDED', *set(sys.modules) - airflows)\n"
        "print('BEFORE', *[one for one in before if one.startswith(('opentelemetry', 'statsd', 'openlineage'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["ADDED", "BEFORE"]


def names() -> list[str]:
    return [
        value
        for name, value in vars(telemetry).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"jojokey\.\w+", value)
    ]
