"""Rendered arguments of any type are converted, or rejected before payment."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest

from airflow_provider_jojokey.operators import jojokey as operators
from airflow_provider_jojokey.operators.arguments import TEXTS, converted
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.payments.options import LIMITS


@pytest.mark.parametrize(
    ("name", "rendered", "expected"),
    [
        ("prompt", 42, "42"),
        ("prompt", 4.5, "4.5"),
        ("s3_key", 20261111, "20261111"),
        ("s3_key", date(2026, 11, 11), "2026-11-11"),
        ("s3_key", PurePosixPath("a/b.png"), "a/b.png"),
        ("s3_bucket", 123456, "123456"),
        ("s3_bucket", None, None),
        ("model", 5, "5"),
        ("size", None, "1024x1024"),
        ("quality", "", "low"),
        ("n", "3", 3),
        ("n", 3.0, 3),
        ("n", " 3 ", 3),
        ("n", "3.0", 3),
        ("n", None, 1),
        ("background", "None", None),
        ("output_compression", "80", 80),
        ("max_tokens", "1000", 1000),
        ("max_tokens", None, None),
        ("reuse", None, "run"),
        ("on_unknown_outcome", "", "fail"),
        ("replace", "true", True),
        ("replace", 0, False),
        ("extra_body", '{"seed": null}', {"seed": None}),
        ("extra_body", "{'seed': None}", {"seed": None}),
        ("extra_body", " ", None),
        ("s3_extra_args", "{'ACL': 'private'}", {"ACL": "private"}),
        ("requests", '[{"prompt": "x"}]', [{"prompt": "x"}]),
        ("max_in_flight", "4", 4),
        ("aws_conn_id", "None", None),
        ("jojokey_conn_id", None, "jojokey_default"),
    ],
)
def test_rendered_value_becomes_type_of_argument(name: str, rendered: Any, expected: Any) -> None:
    found = converted(name, rendered)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "rendered", "reported"),
    [
        ("prompt", "None", "prompt is empty"),
        ("s3_key", None, "s3_key is empty"),
        ("prompt", True, "prompt must be text, not bool"),
        ("s3_key", False, "s3_key must be text, not bool"),
        ("model", True, "model must be text, not bool"),
        ("prompt", {"a": 1}, "prompt must be text, not dict"),
        ("prompt", ["a"], "prompt must be text, not list"),
        ("prompt", b"fox", "prompt must be text, not bytes"),
        ("prompt", "a\0b", r"NUL character \(U\+0000\)"),
        ("s3_key", "a\ud800.png", r"unpaired surrogate \(U\+D800\)"),
        ("model", "gpt\udfff", "unpaired surrogate"),
        ("aws_conn_id", "aws\0", "NUL"),
        ("n", True, "n must be a whole number"),
        ("n", 2.5, "n must be a whole number"),
        ("n", [1], "n must be a whole number"),
        ("n", "²", "n must be a whole number"),
        ("max_tokens", {}, "max_tokens must be a whole number"),
        ("reuse", 1, "reuse must be one of"),
        ("reuse", ["run"], "reuse must be one of"),
        ("extra_body", "seed=1", "extra_body must be a dict, not str"),
        ("extra_body", [1], "extra_body must be a dict, not list"),
        ("requests", 5, "requests must be a list of dicts, not int"),
        ("requests", "{}", "requests must be a list of dicts, not dict"),
        ("replace", "maybe", "replace must be true or false"),
        ("s3_extra_args", {"Tagging": "a=\0"}, "Tagging, which contains"),
        ("s3_extra_args", {"Metadata": {"a": "\0"}}, "NUL"),
        ("s3_extra_args", 5, "s3_extra_args must be a dict"),
        ("requests", None, "requests is empty"),
        ("requests", " ", "requests is empty"),
        ("requests", "None", "requests is empty"),
    ],
)
def test_rendered_value_of_wrong_type_is_rejected(name: str, rendered: Any, reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        converted(name, rendered)


NAN = [float("nan"), -float("nan"), Decimal("nan"), Decimal("sNaN")]


@pytest.mark.parametrize("nan", NAN)
@pytest.mark.parametrize("name", [*TEXTS, "n", "output_compression", "stream", "extra_body", "requests"])
def test_nan_is_the_same_as_nothing(name: str, nan: Any) -> None:
    try:
        expected = converted(name, None)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            converted(name, nan)
    else:
        assert converted(name, nan) == expected


@pytest.mark.parametrize("nan", [*NAN, "nan"])
@pytest.mark.parametrize("name", LIMITS)
def test_limit_that_is_nan_is_not_unlimited(name: str, nan: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} "):
        converted(name, nan)


def test_wrong_setting_fails_once_and_unpaid(
    airflow: Any, gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__LONGEST_GENERATION", "nan")
    run = airflow.run(
        "wrong_setting",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator

        item = {"prompt": "x", "s3_key": "x.png"}
        GenerateImageOperator(task_id="image", s3_bucket="posters", retries=2, **item)
        GenerateImageOperator(task_id="deferred", s3_bucket="posters", retries=2, deferrable=True, **item)
        GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", retries=2, requests=[item])
        """,
    )

    assert set(run.states.values()) == {"failed"}
    assert set(run.tries.values()) == {1}
    assert gateway.requests == ()


UNESCAPED = {
    "s3_extra_args": '{"Tagging": "kind=a%20poster"}',
    "price_per_million": '{"currency": "%"}',
    "spool_directory": "/tmp/50%",
    "upload_patience": "5%",
}


@pytest.mark.parametrize("name", UNESCAPED)
def test_unescaped_percent_sign_in_airflow_cfg_is_named(
    airflow: Any, gateway: Any, store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow interprets it, and reading the setting fails in a way that no ValueError covers."""
    from airflow.providers.common.compat.sdk import conf

    monkeypatch.delenv(f"AIRFLOW__JOJOKEY__{name.upper()}", raising=False)
    conf.read_string(f"[jojokey]\n{name} = {UNESCAPED[name]}\n")
    try:
        run = airflow.run(
            "percent",
            """
            item = {"prompt": "x", "s3_key": "x.png", "s3_bucket": "posters"}
            item |= {"retries": 2, "retry_delay": timedelta(0)}
            GenerateImageOperator(task_id="image", **item)
            GenerateImageOperator(task_id="deferred", deferrable=True, **item)
            """,
        )
    finally:
        conf.remove_option("jojokey", name)

    assert set(run.states.values()) == {"failed"}
    assert set(run.tries.values()) == {1}
    for task in ("image", "deferred"):
        error = run.xcom("jojokey_images", task)
        assert (error["error"], error["billed"]) == ("JojoKeyRequestError", "no")
        assert f"[jojokey] {name}" in error["message"]
        assert "%%" in error["message"]
    assert gateway.requests == ()


@pytest.mark.parametrize(
    ("given", "deferred"),
    [
        ("false", False),
        ("False", False),
        ("0", False),
        (0, False),
        (" true ", True),
        ("True", True),
        (1, True),
    ],
)
def test_deferrable_may_be_text(given: Any, deferred: bool) -> None:
    operator = GenerateImageOperator(
        task_id="image", prompt="a fox", s3_key="s3://posters/fox.png", deferrable=given
    )

    assert operator.deferrable is deferred


@pytest.mark.parametrize("given", [None, "", "None"])
@pytest.mark.parametrize("setting", ["True", "False"])
def test_empty_deferrable_means_the_default(
    given: Any, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", setting)
    monkeypatch.setattr(operators, "_default_deferrable", operators._default_deferrable.__wrapped__)

    operator = GenerateImageOperator(
        task_id="image", prompt="a fox", s3_key="s3://posters/fox.png", deferrable=given
    )

    assert operator.deferrable is (setting == "True")


@pytest.mark.parametrize("given", ["{{ params.deferrable }}", "no", 2, [True]])
def test_unusable_deferrable_is_reported_at_parsing(given: Any) -> None:
    with pytest.raises(ValueError, match="deferrable must be true or false"):
        GenerateImageOperator(
            task_id="image", prompt="a fox", s3_key="s3://posters/fox.png", deferrable=given
        )


@pytest.mark.parametrize("native", [True, False])
def test_batch_without_requests_fails_once_and_unpaid(
    airflow: Any, gateway: Any, store: Any, native: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    run = airflow.run(
        "no_requests",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator

        @task
        def rows():
            return None
        GenerateImageBatchOperator(task_id="image", s3_bucket="posters", requests=rows(), retries=2)
        GenerateImageBatchOperator(
            task_id="rendered", s3_bucket="posters", requests="{{ params.nothing }}", retries=2
        )
        """,
        params={"nothing": None},
        render_template_as_native_obj=native,
    )

    for task in ("image", "rendered"):
        assert (run.states[task, -1], run.tries[task, -1]) == ("failed", 1)
    assert gateway.requests == ()
    assert "requests is empty" in capfd.readouterr().out


def test_empty_cells_of_a_table_are_not_generated(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "nan_cells",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator

        rows = '[{"prompt": "x", "s3_key": "x.png", "quality": NaN}, {"prompt": PROMPT, "s3_key": "y.png"}]'
        for name, prompt in (("empty", "NaN"), ("flag", "true"), ("text", '"y"')):
            GenerateImageBatchOperator(
                task_id=name, s3_bucket="posters", requests=rows.replace("PROMPT", prompt), retries=2
            )
        """,
    )

    assert {task: state for (task, _), state in run.states.items()} == {
        "empty": "failed",
        "flag": "failed",
        "text": "success",
    }
    assert set(run.tries.values()) == {1}
    assert {request.prompt for request in gateway.requests} == {"x", "y"}


NATIVE = """
    import datetime
    from airflow.sdk import DAG, task
    from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

    with DAG(
        "native", schedule=None, render_template_as_native_obj=True,
        params={"p": 42, "n": 2, "none": None, "body": {"user": "me"}, "batch": 7, "size": "1024x640", "meta": {"day": "1"}},
    ):
        GenerateImageOperator(
            task_id="numbers", prompt="{{ params.p }}", s3_bucket="posters", s3_key="{{ 20261111 }}",
            n="{{ params.n }}", reuse="{{ params.none }}", background="{{ params.none }}", size="{{ params.size }}",
            extra_body="{{ params.body }}", output_format="jpeg", output_compression="{{ 70 }}",
            max_tokens="{{ 10000 }}", aws_conn_id="{{ 'aws_default' }}",
        )
        GenerateImageOperator(
            task_id="lossless", prompt="1, 2, 3", s3_bucket="posters", s3_key="2026_11_11", size="1024x640",
        )
        GenerateImageOperator(
            task_id="quoted", prompt='"SALE"', s3_bucket="posters", s3_key="'a'.png", size="1024x640", deferrable=True,
        )
        GenerateImageBatchOperator(
            task_id="batch", s3_bucket="posters", size="1024x640", max_in_flight="{{ params.n }}",
            requests=[
                {"prompt": "{{ params.batch }}", "s3_key": "{{ 777 }}", "n": "{{ '1' }}"},
                {"prompt": "4, 5, 6", "s3_key": "{{ params.p }}_0{{ params.batch }}", "extra_body": {"user": "me"}},
            ],
        )
        GenerateImageBatchOperator.partial(task_id="mapped", s3_bucket="posters", size="1024x640").expand(
            requests=[({"prompt": "'mapped'", "s3_key": "2026_11_12"},)],
        )
        for name, metadata in (("labels", {"day": "2026_11_11", "p": "{{ params.p }}"}), ("whole", "{{ params.meta }}")):
            GenerateImageOperator(
                task_id=name, prompt=name, s3_bucket="posters", s3_key=f"{name}.png", size="1024x640",
                s3_extra_args={
                    "CacheControl": "{{ params.p }}", "BucketKeyEnabled": "{{ true }}", "Metadata": metadata,
                    "ExpectedBucketOwner": "123456789012",
                },
            )

        @task.jojokey_image(s3_bucket="posters", s3_key="{{ 888 }}", n="{{ params.n }}", size="1024x640")
        def decorated(number):
            assert number == 42
            return {"prompt": f"number {number}", "reuse": None}

        decorated("{{ params.p }}")
"""


def test_native_rendering_works_for_all_operators(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run_file("native", airflow.write("native.py", NATIVE))

    assert set(run.states.values()) == {"success"}, run.states
    prompts = {"42", "1, 2, 3", '"SALE"', "7", "4, 5, 6", "'mapped'", "number 42", "labels", "whole"}
    assert {request.prompt for request in gateway.requests} == prompts
    assert run.xcom("keys", "numbers") == ["20261111-0", "20261111-1"]
    assert run.xcom("keys", "lossless") == ["2026_11_11"]
    assert run.xcom("keys", "quoted") == ["'a'.png"]
    assert run.xcom("keys", "batch") == ["777", "42_07"]
    assert run.xcom("keys", "mapped", 0) == ["2026_11_12"]
    assert run.xcom("keys", "decorated") == ["888-0", "888-1"]
    labels, whole = (
        store.client.head_object(Bucket="posters", Key=f"{name}.png") for name in ("labels", "whole")
    )
    assert (labels["CacheControl"], labels["Metadata"]["day"], labels["Metadata"]["p"]) == (
        "42",
        "2026_11_11",
        "42",
    )
    assert whole["Metadata"]["day"] == "1"
    (numbers,) = [request for request in gateway.requests if request.prompt == "42"]
    assert (numbers.body["user"], numbers.body["output_compression"]) == ("me", 70)


@pytest.mark.parametrize(
    "argument",
    [
        'prompt="{{ none }}"',
        "prompt=\"{{ 'a' + nul }}\"",
        'n="{{ params.d }}"',
        'extra_body="{{ params.l }}"',
        'extra_body={"style": "{{ nul }}"}',
        "model=\"{{ 'gpt' + nul }}\"",
        's3_extra_args="{{ params.l }}"',
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_wrong_rendered_value_fails_once_and_unpaid(
    airflow: Any, gateway: Any, store: Any, argument: str, native: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = {"prompt": '"x"', "s3_key": '"x.png"', argument.partition("=")[0]: argument.partition("=")[2]}
    listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
    run = airflow.run(
        "wrong_value",
        f'GenerateImageOperator(task_id="image", s3_bucket="posters", retries=3, {listed})',
        params={"d": {"a": 1}, "l": [1]},
        render_template_as_native_obj=native,
        user_defined_macros={"nul": "\0", "none": ""},
    )

    assert run.states["image", -1] == "failed"
    assert run.tries["image", -1] == 1
    assert gateway.requests == ()
    assert "Nothing was sent or billed" in capfd.readouterr().out


def test_mapped_values_of_odd_types_are_converted(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "mapped_types",
        """
        @task
        def rows():
            return [
                {"prompt": 42, "s3_key": 20261111, "n": "1", "reuse": None},
                {"prompt": "x", "s3_key": "x.png", "size": "999x999"},
                {"prompt": ["x"], "s3_key": "y.png"},
            ]
        GenerateImageOperator.partial(task_id="image", s3_bucket="posters", retries=2).expand_kwargs(rows())
        """,
    )

    assert [run.states["image", index] for index in range(3)] == ["success", "failed", "failed"]
    assert [run.tries["image", index] for index in range(3)] == [1, 1, 1]
    assert [request.prompt for request in gateway.requests] == ["42"]
    assert run.labels["image", 0] == "20261111"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udfff"])
def test_unstorable_text_in_dag_file_is_reported_at_parsing(text: str) -> None:
    for wrong in (
        {"prompt": text},
        {"model": text},
        {"extra_body": {"x": [text]}},
        {"extra_body": {text: 1}},
    ):
        with pytest.raises(ValueError, match="databases can't store"):
            GenerateImageOperator(**{"task_id": "image", "prompt": "x", "s3_key": "s3://b/x.png", **wrong})


def test_nothing_rendered_natively_means_the_default() -> None:
    from jinja2.nativetypes import NativeEnvironment

    undefined = NativeEnvironment().from_string("{{ nothing }}").render()
    assert converted("quality", undefined) == "low"
    assert converted("s3_bucket", undefined) is None
    assert converted("s3_key", datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01 00:00:00+00:00"


def test_batch_arguments_in_dag_file_are_checked_at_parsing() -> None:
    with pytest.raises(ValueError, match="max_in_flight must be a whole number"):
        GenerateImageBatchOperator(task_id="batch", requests=[], max_in_flight="many")
