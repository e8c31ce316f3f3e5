"""What Airflow's worker sends to OpenLineage, StatsD and an OpenTelemetry collector, all of them real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from airflow.version import version as airflow_version

from airflow_provider_jojokey import telemetry

from .receivers import Collector, Sample, Span, StatsD

pytestmark = pytest.mark.skipif(
    airflow_version.startswith("3.1."),
    reason="Airflow 3.1 makes no spans around tasks, nor lets others make any",
)

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
with DAG("measured", schedule=None):
    GenerateImageOperator(task_id="image", prompt="measured", s3_key="otel.png", **common)
"""


@dataclass
class Observed:
    """What was received of one run."""

    run_id: str
    states: dict[str, str]
    samples: list[Sample]
    spans: list[Span]
    metrics: dict[str, list[dict[str, Any]]]
    events: list[dict[str, Any]]
    ledger: list[Any]
    """What was billed to the run that StatsD heard of."""

    def total(self, name: str, **tags: str) -> int:
        """Add up a counter's samples."""
        return sum(
            int(one.value)
            for one in self.samples
            if one.name == f"airflow.{name}" and tags.items() <= one.tags.items()
        )

    def under(self, span: Span) -> list[Span]:
        return [one for one in self.spans if one.parent == span.id]


@pytest.fixture(scope="module")
def observed(
    airflow: Any, _gateway: Any, _stores: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    """One run of each Dag, in processes of their own."""
    from airflow_provider_jojokey.generation import generate_images
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.order import Order
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.receipts import Owner
    from airflow_provider_jojokey.store.s3 import ImageStore

    path = airflow.write("observed.py", DAG_FILE)
    folder = tmp_path_factory.mktemp("observed")
    lineage, outcome = folder / "lineage.jsonl", folder / "outcome.json"
    _gateway.reset()
    connection = {"conn_type": "jojokey", "host": _gateway.url, "password": _gateway.token}
    with pytest.MonkeyPatch.context() as patch, Collector() as collector:
        statsd = StatsD()
        patch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(_stores["moto"].connection))
        order = Order(
            ImageRequest("paid for before", size="1024x640"),
            Destination("posters", "old.png"),
            Owner("another", "run", "task", -1, 1),
            reuse="always",
        )
        generate_images(
            order, jojokey=JojoKeyHook(), store=ImageStore("aws_default"), settings=Settings.of_airflow()
        )
        environment = {
            **os.environ,
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(lineage), "append": True}
            ),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(statsd.port),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with_otel = {"AIRFLOW__METRICS__STATSD_ON": "False", "AIRFLOW__METRICS__OTEL_ON": "True"}
        runs = [("observed", str(path), {}), ("measured", str(path), with_otel)]
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "supervised.py"), json.dumps(runs), str(outcome)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(outcome.read_text())
        yield Observed(
            run_id=result[0]["run_id"],
            states=result[0]["states"],
            samples=statsd.samples(),
            spans=collector.spans,
            metrics=collector.metrics,
            events=[json.loads(line) for line in lineage.read_text().splitlines()],
            ledger=[one for one in _gateway.ledger if one.prompt not in ("paid for before", "measured")],
        )


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
    (billed,) = (one for one in observed.ledger if one.prompt == PROMPT)
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
    assert len(facets) == 5
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
        assert observed.total(name) == sum(getattr(one, kind) for one in observed.ledger)


def test_what_is_in_flight_goes_up_and_down_again(observed: Observed) -> None:
    changes = [one.value for one in observed.samples if one.name == f"airflow.{telemetry.IN_FLIGHT}"]
    assert sorted(set(changes)) == ["+1", "-1"]
    assert changes.count("+1") == changes.count("-1") == 5


def test_names_and_tags_are_few_whatever_is_asked_for(observed: Observed) -> None:
    own = [one for one in observed.samples if one.name.startswith("airflow.jojokey")]
    assert {one.name.removeprefix("airflow.") for one in own} == set(names())
    assert {tag for one in own for tag in one.tags} == {"dag_id", "model", "quality", "error"}
    assert "fox" not in repr(own)
    assert observed.run_id not in repr(own)


def test_a_span_each_for_request_decoding_and_upload_belongs_to_the_tasks_span(observed: Observed) -> None:
    (task,) = (one for one in observed.spans if one.name == "worker.image" and _made(observed, one) == 2)
    (whole,) = observed.under(task)
    request, *uploads = sorted(observed.under(whole), key=lambda one: one.name)
    assert request.name == "generate_content gpt-image-2"
    assert [one.name for one in uploads] == ["upload", "upload"]
    assert {one.attributes["aws.s3.key"] for one in uploads} == {"fox-0.png", "fox-1.png"}
    assert [one.name for one in observed.under(request)] == ["decode"]
    (billed,) = (one for one in observed.ledger if one.prompt == PROMPT)
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
    assert used <= {one for one in known if isinstance(one, str)}


def test_a_batchs_spans_belong_to_its_task(observed: Observed) -> None:
    (task,) = (one for one in observed.spans if one.name == "worker.batch")
    requests = [request for whole in observed.under(task) for request in observed.under(whole)]
    assert sum(one.name.startswith("generate_content") for one in requests) == 3


def test_a_failed_request_is_an_error_by_its_class_without_its_message(observed: Observed) -> None:
    (task,) = (one for one in observed.spans if one.name == "worker.broken")
    (whole,) = observed.under(task)
    (request,) = (one for one in observed.under(whole) if one.name.startswith("generate_content"))
    assert request.error
    assert request.attributes["error.type"] == "JojoKeyReplyError"
    assert request.attributes["jojokey.billed"] == "yes"
    own = [one for one in observed.spans if one.name in ("jojokey", "decode", "upload", request.name)]
    assert "nobody may hear" not in repr(own)


def test_opentelemetry_gets_the_same_metrics(observed: Observed) -> None:
    (images,) = observed.metrics[f"airflow.{telemetry.IMAGES}"]
    assert images == {
        "value": 1,
        "tags": {"dag_id": "measured", "model": "gpt-image-2", "quality": "low"},
    }
    (tokens,) = observed.metrics[f"airflow.{telemetry.OUTPUT_TOKENS}"]
    assert tokens["value"] > 100
    (duration,) = observed.metrics[f"airflow.{telemetry.REQUEST_DURATION}"]
    assert duration["value"] > 0


def test_no_token_and_no_prompt_reaches_anyone(observed: Observed) -> None:
    told = repr(
        (observed.samples, observed.metrics, [one for one in observed.spans if "worker" not in one.name])
    )
    assert "nobody may hear" not in told
    assert "sk-" not in told


def test_switched_off_it_imports_nothing_and_calls_nobody() -> None:
    code = (
        "import sys\nfrom airflow_provider_jojokey.telemetry import Observer, observe\n"
        "before = set(sys.modules)\n"
        "from airflow.providers.common.compat.sdk import conf\nconf.getboolean('metrics', 'statsd_on')\n"
        "airflows = set(sys.modules)\n"
        "with observe(None) as observer: assert type(observer) is Observer, observer\n"
        "print('ADDED', *set(sys.modules) - airflows)\n"
        "print('BEFORE', *[one for one in before if one.startswith(('opentelemetry', 'statsd', 'openlineage'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["ADDED", "BEFORE"]


def _made(observed: Observed, task: Span) -> int:
    return sum(one.name == "upload" for whole in observed.under(task) for one in observed.under(whole))


def names() -> list[str]:
    return [
        value
        for name, value in vars(telemetry).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"jojokey\.\w+", value)
    ]
