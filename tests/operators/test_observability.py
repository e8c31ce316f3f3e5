"""Telemetry that a worker sends to OpenLineage, StatsD and an OpenTelemetry collector."""

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

from airflow_provider_jojokey.cost import NANOS, PUBLISHED, Cost, Costs, sum_of
from airflow_provider_jojokey.integrations import telemetry
from airflow_provider_jojokey.sandbox.charges import QUOTA_PER_USD
from tests.operators.receivers import Collector, Sample, Span, StatsD
from tests.support.patience import PATIENCE

AIRFLOW_3_1 = airflow_version.startswith("3.1.")
AIRFLOW_SPANS = ("dag_run.", "task_run.", "worker.")
"""Prefixes of the names of Airflow's own spans."""
ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "airflow_provider_jojokey/plugins/static/JojoKeyRunFacet-1-0-0.json"
PROMPT = "a fox in a confidential draft"
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
    """Telemetry and charges of one run."""

    run_id: str
    states: dict[str, str]
    samples: list[Sample]
    spans: list[Span]
    events: list[dict[str, Any]]
    charges: list[Any]
    """Charges of the gateway for this run."""

    def total(self, name: str, **tags: str) -> int:
        """Return the sum of a counter's samples."""
        return sum(
            int(sample.value)
            for sample in self.samples
            if sample.name == f"airflow.{name}" and tags.items() <= sample.tags.items()
        )

    def facet(self, task: str) -> dict[str, Any]:
        """Return the provider's run facet of a task that has ended."""
        (event,) = (
            event
            for event in self.events
            if event["job"]["name"] == f"observed.{task}" and event["eventType"] in ("COMPLETE", "FAIL")
        )
        return dict(event["run"]["facets"]["jojokey"])

    def job_span(self, key: str) -> Span:
        """Return the span of the job that generated an image."""
        (upload,) = (span for span in self.spans if span.attributes.get("aws.s3.key") == key)
        (job,) = (span for span in self.spans if span.id == upload.parent)
        assert job.name == "jojokey"
        return job

    def request_span(self, key: str) -> Span:
        """Return the span of the request that paid for an image."""
        (request,) = (item for item in self.children(self.job_span(key)) if item.name != "upload")
        assert request.name == "generate_content gpt-image-2"
        return request

    def children(self, span: Span) -> list[Span]:
        return [item for item in self.spans if item.parent == span.id]


@pytest.fixture(scope="module")
def work(
    airflow: Any, _gateway: Any, _stores: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return a function that runs a Dag in a separate worker and returns its outcome."""
    path = airflow.write("observed.py", DAG_FILE)
    _gateway.reset()
    connection = {"conn_type": "jojokey", "host": _gateway.url, "password": _gateway.token}

    def run(dag_id: str, *flags: str, **environment: str) -> dict[str, Any]:
        outcome = tmp_path_factory.mktemp(dag_id) / "outcome.json"
        script = Path(__file__).parent / "supervised.py"
        done = subprocess.run(
            [sys.executable, str(script), dag_id, str(path), str(outcome), *flags],
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
    """A run with OpenLineage, StatsD and traces; on Airflow 3.1, the worker is instrumented instead."""
    flags = ["instrumented"] if AIRFLOW_3_1 else []
    lineage = tmp_path_factory.mktemp("lineage") / "events.jsonl"
    pay_before()
    billed_before = len(_gateway.charges)
    statsd = StatsD()
    with Collector() as collector:
        result = work(
            "observed",
            *flags,
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
    """OpenTelemetry data of a run: Airflow's metrics, and spans of an instrumented worker."""
    with Collector() as collector:
        work("collected", "instrumented", AIRFLOW__METRICS__OTEL_ON="True", **otlp(collector))
    return collector


def pay_before() -> None:
    """Pay for an image that a task will reuse."""
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
    """Return the environment of a process that sends to a collector."""
    address = urlsplit(collector.url)
    return {
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "AIRFLOW__METRICS__OTEL_HOST": str(address.hostname),  # Airflow 3.1 reads only these settings
        "AIRFLOW__METRICS__OTEL_PORT": str(address.port),
    }


def test_observed_tasks_end_as_expected(observed: Observed) -> None:
    assert observed.states == {"image": "success", "broken": "failed", "again": "success", "batch": "success"}


def test_openlineage_gets_images_model_and_tokens(observed: Observed) -> None:
    ended = {
        event["job"]["name"]: event for event in observed.events if event["eventType"] in ("COMPLETE", "FAIL")
    }
    image = ended["observed.image"]
    assert [(output["namespace"], output["name"]) for output in image["outputs"]] == [
        ("s3://posters", "fox-0.png"),
        ("s3://posters", "fox-1.png"),
    ]
    assert all("schema" not in output["facets"] for output in image["outputs"])
    assert all(output["outputFacets"]["outputStatistics"]["size"] > 1000 for output in image["outputs"])
    facet = image["run"]["facets"]["jojokey"]
    (billed,) = (charge for charge in observed.charges if charge.prompt == PROMPT)
    assert (facet["model"], facet["images"], facet["totalTokens"]) == ("gpt-image-2", 2, billed.total_tokens)

    broken = ended["observed.broken"]
    assert broken["eventType"] == "FAIL"
    assert [output["name"] for output in broken["outputs"]] == ["b-0.png"]
    assert broken["run"]["facets"]["jojokey"]["error"] == "JojoKeyReplyError"

    assert [output["name"] for output in ended["observed.batch"]["outputs"]] == ["0.png", "1.png", "2.png"]
    assert ended["observed.again"]["run"]["facets"]["jojokey"]["reused"] is True


@pytest.mark.parametrize(
    ("task", "prompts"),
    [
        ("image", [PROMPT]),
        ("broken", [f"{PROMPT} [sandbox: truncated]"]),
        ("again", []),
        ("batch", ["an owl"]),
    ],
)
def test_openlineage_gets_what_the_gateway_charged(observed: Observed, task: str, prompts: list[str]) -> None:
    facet = observed.facet(task)
    charges = [charge for charge in observed.charges if charge.prompt in prompts]
    tokens = [
        {name: getattr(charge, name) for name in ("input_tokens", "output_tokens")} for charge in charges
    ]
    exact = sum_of(
        Cost(charge.quota * NANOS // QUOTA_PER_USD, "USD", approximate=False) for charge in charges
    )
    cost = Costs.from_json(facet["cost"])
    # The truncated response had no usage, so the charge was read from the gateway log.
    assert cost == (exact if task == "broken" else sum_of(map(PUBLISHED.cost_of, tokens)))
    assert (facet["totalTokens"] or 0) == sum(charge.total_tokens for charge in charges)
    assert bool(charges) == bool(cost.amounts)


def test_run_facet_follows_its_schema(observed: Observed) -> None:
    schema = json.loads(SCHEMA.read_text())
    own = schema["$defs"]["JojoKeyRunFacet"]["allOf"][1]
    facets = [
        event["run"]["facets"]["jojokey"] for event in observed.events if "jojokey" in event["run"]["facets"]
    ]
    assert len(facets) == 4
    for facet in facets:
        assert facet["_schemaURL"].endswith(f"/jojokey/static/{SCHEMA.name}#/$defs/JojoKeyRunFacet")
        jsonschema.validate(facet, own)
        assert set(facet) <= {"_producer", "_schemaURL", *own["properties"]}


def test_statsd_gets_counts_and_durations(observed: Observed) -> None:
    tags = {"dag_id": "observed", "model": "gpt-image-2", "quality": "low"}
    assert (
        observed.total(telemetry.IMAGES, **tags) == 2 + 1 + 3
    )  # the truncated response delivered one of two
    assert observed.total(telemetry.IMAGES_REUSED, **tags) == 1
    assert observed.total(telemetry.ERRORS, **tags, error="JojoKeyReplyError") == 1
    assert observed.total(telemetry.ERRORS) == 1
    assert observed.total(telemetry.UPLOAD_BYTES) > 6000
    for name in (telemetry.REQUEST_DURATION, telemetry.UPLOAD_DURATION):
        times = [float(sample.value) for sample in observed.samples if sample.name == f"airflow.{name}"]
        assert times
        assert min(times) > 0


def test_metrics_count_billed_tokens_and_cost(observed: Observed) -> None:
    for name, kind in (
        (telemetry.INPUT_TOKENS, "input_tokens"),
        (telemetry.OUTPUT_TOKENS, "output_tokens"),
    ):
        assert observed.total(name) == sum(getattr(charge, kind) for charge in observed.charges)
    costs = [
        PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in observed.charges
    ]
    assert observed.total(telemetry.COST, currency="USD") == sum(
        round(cost.nanos / 1000) for cost in costs if cost
    )


def test_in_flight_metric_returns_to_zero(observed: Observed) -> None:
    changes = [sample.value for sample in observed.samples if sample.name == f"airflow.{telemetry.IN_FLIGHT}"]
    assert sorted(set(changes)) == ["+1", "-1"]
    assert changes.count("+1") == changes.count("-1") == 5


def test_metric_names_and_tags_are_bounded(observed: Observed) -> None:
    own = [sample for sample in observed.samples if sample.name.startswith("airflow.jojokey")]
    assert {sample.name.removeprefix("airflow.") for sample in own} == set(names())
    assert {tag for sample in own for tag in sample.tags} == {
        "dag_id",
        "model",
        "quality",
        "error",
        "currency",
    }
    assert "fox" not in repr(own)
    assert observed.run_id not in repr(own)


def test_job_has_spans_for_request_decoding_and_uploads(observed: Observed) -> None:
    job, request = observed.job_span("fox-0.png"), observed.request_span("fox-0.png")
    assert job.attributes == {"jojokey.images.requested": 2}
    uploads = [item for item in observed.children(job) if item is not request]
    assert [span.name for span in uploads] == ["upload", "upload"]
    assert {span.attributes["aws.s3.key"] for span in uploads} == {"fox-0.png", "fox-1.png"}
    assert [item.name for item in observed.children(request)] == ["decode"]
    (billed,) = (charge for charge in observed.charges if charge.prompt == PROMPT)
    attributes = {name: value for name, value in request.attributes.items() if name.startswith("gen_ai.")}
    assert attributes == {
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


def test_span_attributes_follow_opentelemetry_conventions(observed: Observed) -> None:
    from opentelemetry.semconv._incubating.attributes import aws_attributes, gen_ai_attributes

    known = [*vars(gen_ai_attributes).values(), *vars(aws_attributes).values()]
    used = {
        name for span in observed.spans for name in span.attributes if name.startswith(("gen_ai.", "aws."))
    }
    assert used
    newer = {"gen_ai.request.stream"} if AIRFLOW_3_1 else set()  # than the packages that Airflow 3.1 pins
    assert used - newer <= {name for name in known if isinstance(name, str)}


def test_each_batch_item_has_its_own_request_span(observed: Observed) -> None:
    assert len({observed.request_span(f"{n}.png").id for n in range(3)}) == 3


@pytest.mark.skipif(
    AIRFLOW_3_1,
    reason="Airflow 3.1 creates the span of a task in the scheduler, not in the process of the task",
)
def test_job_span_is_a_child_of_the_task_span(observed: Observed) -> None:
    keys_by_task = {"image": ["fox-0.png"], "broken": ["b-0.png"], "batch": ["0.png", "1.png", "2.png"]}
    for task, keys in keys_by_task.items():
        (span,) = (span for span in observed.spans if span.name == f"worker.{task}")
        assert all(observed.job_span(key) in observed.children(span) for key in keys), task


def test_failed_request_span_has_class_but_no_message(observed: Observed) -> None:
    request = observed.request_span("b-0.png")
    assert request.error
    assert request.attributes["error.type"] == "JojoKeyReplyError"
    assert request.attributes["jojokey.billed"] == "yes"
    own = [span for span in observed.spans if span.name in ("jojokey", "decode", "upload", request.name)]
    assert "confidential" not in repr(own)


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


def test_instrumented_worker_sends_all_spans_of_a_task(collected: Collector) -> None:
    own = {span.name: span for span in collected.spans if not span.name.startswith(AIRFLOW_SPANS)}
    assert set(own) == {"jojokey", "generate_content gpt-image-2", "decode", "upload"}
    assert len({sample.trace for sample in own.values()}) == 1
    above = [span.name for span in collected.spans if span.id == own["jojokey"].parent]
    assert above == ([] if AIRFLOW_3_1 else ["worker.image"])


def test_telemetry_contains_no_token_and_no_prompt(observed: Observed, collected: Collector) -> None:
    spans = [item for item in (*observed.spans, *collected.spans) if not item.name.startswith(AIRFLOW_SPANS)]
    telemetry_data = repr((observed.samples, collected.metrics, spans))
    assert "confidential" not in telemetry_data
    assert "sk-" not in telemetry_data


def test_disabled_telemetry_imports_nothing() -> None:
    code = (
        "import sys\nfrom airflow_provider_jojokey.integrations.telemetry import Observer, observe\n"
        "before = set(sys.modules)\n"
        "from airflow.providers.common.compat.sdk import conf\nconf.getboolean('metrics', 'statsd_on')\n"
        "airflow_modules = set(sys.modules)\n"
        "with observe(None) as observer: assert type(observer) is Observer, observer\n"
        "print('ADDED', *set(sys.modules) - airflow_modules)\n"
        "print('BEFORE', *[name for name in before if name.startswith(('opentelemetry', 'statsd', 'openlineage'))])"
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
