"""Text from upstream tasks is data: Jinja syntax in it reads no connection, no variable and no file."""

from __future__ import annotations

from typing import Any

import pytest

HOSTILE = "a fox {{ conn.aws_default.password }} {% raw %}"

UPSTREAM = """
    from airflow.sdk import DAG, task
    from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

    HOSTILE = {hostile!r}

    with DAG("upstream", schedule=None, params={{"name": "fox"}}):

        @task
        def rows():
            return [
                {{"prompt": HOSTILE, "s3_key": "one.png", "extra_body": {{"user": HOSTILE}}}},
                {{"prompt": "hero.prompt", "s3_key": "two.png"}},
            ]

        @task
        def prompts():
            return [HOSTILE]

        common = dict(s3_bucket="posters", size="1024x640", retries=2)
        GenerateImageOperator.partial(task_id="whole", model="{{{{ 'gpt-image-2' }}}}", **common).expand_kwargs(rows())
        GenerateImageOperator.partial(task_id="one", s3_key="{{{{ params.name }}}}.png", **common).expand(
            prompt=prompts()
        )
        GenerateImageOperator.partial(task_id="written", **common).expand_kwargs(
            [{{"prompt": "a {{{{ params.name }}}}", "s3_key": "written-{{{{ params.name }}}}.png"}}]
        )

        @task.jojokey_image(s3_key="decorated.png", **common)
        def decorated(prompt, s3_key, extra_body=None):
            return {{"prompt": prompt, "s3_key": "decorated-" + s3_key}}

        decorated.expand_kwargs(rows())
"""


@pytest.mark.parametrize("native", [False, True])
def test_templates_in_upstream_values_are_not_rendered(
    airflow: Any, gateway: Any, store: Any, native: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    airflow.write("hero.prompt", "a file beside the Dag")
    source = UPSTREAM.format(hostile=HOSTILE)
    if native:
        source = source.replace("schedule=None", "schedule=None, render_template_as_native_obj=True")
    run = airflow.run_file("upstream", airflow.write("upstream.py", source))

    assert {state for (name, _), state in run.states.items()} == {"success"}, run.states
    prompts = sorted(request.prompt for request in gateway.requests)
    assert prompts == sorted([HOSTILE, "hero.prompt", HOSTILE, "a fox", HOSTILE, "hero.prompt"])
    assert HOSTILE in [request.body.get("user") for request in gateway.requests]
    assert {request.body["model"] for request in gateway.requests} == {"gpt-image-2"}
    assert run.xcom("keys", "one", 0) == ["fox.png"]
    assert run.xcom("keys", "written", 0) == ["written-fox.png"]
    assert "prompt comes from an upstream task: the braces in it are not a template" in capfd.readouterr().out


def test_key_template_from_upstream_is_rejected_unpaid(
    airflow: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = airflow.run(
        "upstream_key",
        """
        @task
        def rows():
            return [{"prompt": "x", "s3_key": "{{ run_id }}.png"}]
        GenerateImageOperator.partial(task_id="image", s3_bucket="posters", retries=2).expand_kwargs(rows())
        """,
    )

    assert run.states["image", 0] == "failed"
    assert run.tries["image", 0] == 1
    assert gateway.requests == ()
    assert "Let the upstream task return the complete value" in capfd.readouterr().out
