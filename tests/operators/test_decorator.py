"""`@task.jojokey_image` in a real Airflow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.support.patience import PATIENCE
from tests.support.rendered import shown

DAG_FILE = """
import os
from airflow.sdk import DAG, task

def calls(name):
    path = os.path.join(os.environ["AIRFLOW_HOME"], "calls-" + name)
    with open(path, "a") as log:
        log.write("x")
    return os.path.getsize(path)

with DAG("decorated", schedule=None, params={"animal": "fox"}):

    @task
    def animals():
        return ["cat", "dog"]

    @task.jojokey_image(s3_key="s3://posters/{{ params.animal }}.png", size="1024x640")
    def plain(animal, params=None):
        return "a " + animal + " beside {{ 1 + 1 }} a " + params["animal"]

    @task.jojokey_image(s3_bucket="posters", s3_key="{{ task.task_id }}.{ext}")
    def options() -> dict:
        return {"prompt": "an owl", "n": 2, "size": "1024x640", "output_format": "jpeg", "s3_key": "owl-{index}.{ext}"}

    @task.jojokey_image(s3_bucket="posters", s3_key="deferred.png", size="1024x640", deferrable=True)
    def deferred():
        return f"the bear of call {calls('deferred')}"

    @task.jojokey_image(s3_bucket="posters", size="1024x640")
    def mapped(animal):
        return {"prompt": f"a {animal}", "s3_key": f"{animal}.png"}

    @task.jojokey_image(s3_bucket="posters", s3_key="none.png", retries=3)
    def nothing():
        return calls("nothing") and None

    @task.jojokey_image(s3_bucket="posters", s3_key="no.png")
    def unknown_option():
        return {"prompt": "x", "jojokey_conn_id": "other"}

    @task.jojokey_image(s3_bucket="posters", s3_key="kept.{ext}", size="1024x640", n=2, output_format="jpeg")
    def empty():
        return {"prompt": "a hare", "s3_key": "", "size": None, "n": float("nan"), "output_format": "None"}

    @task.jojokey_image(s3_bucket="posters", retries=3)
    def no_key():
        return {"prompt": "x", "s3_key": None}

    empty(), no_key()
    plain(animal="{{ params.animal }}"), options(), deferred(), mapped.expand(animal=animals()), nothing(), unknown_option()
"""


def test_decorated_function_generates_images(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run_file("decorated", airflow.write("decorated.py", DAG_FILE))

    failed = {task for (task, _), state in run.states.items() if state != "success"}
    assert failed == {"nothing", "unknown_option", "no_key"}
    prompts = sorted(request.prompt for request in gateway.requests)
    # The function's arguments are templates; its return value is not.
    assert "a fox beside {{ 1 + 1 }} a fox" in prompts
    assert prompts == sorted(
        ["a fox beside {{ 1 + 1 }} a fox", "an owl", "the bear of call 1", "a cat", "a dog", "a hare"]
    )
    assert run.xcom("keys", "plain") == ["fox.png"]
    assert run.xcom("keys", "options") == ["owl-0.jpg", "owl-1.jpg"]
    assert (
        run.xcom("images", "options") is None
    )  # the manifest is one XCom, with any annotation of the function
    assert run.xcom("keys", "deferred") == ["deferred.png"]
    assert run.xcom("jojokey_images", "deferred")["prompt"] == "the bear of call 1"
    assert [run.xcom("keys", "mapped", index) for index in (0, 1)] == [["cat.png"], ["dog.png"]]
    assert [run.labels["mapped", index] for index in (0, 1)] == ["cat.png", "dog.png"]
    assert run.xcom("keys", "empty") == ["kept-0.jpg", "kept-1.jpg"]
    (hare,) = [request for request in gateway.requests if request.prompt == "a hare"]
    assert hare.body["size"] == "1024x640"
    assert (run.tries["nothing", -1], run.tries["no_key", -1]) == (1, 1)  # a retry would not help
    assert shown("decorated", run.run_id, "options")["prompt"] == "an owl"
    assert shown("decorated", run.run_id, "deferred")["prompt"] == "the bear of call 1"


def test_decorator_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom airflow.sdk import task\nbefore = set(sys.modules)\ntask.jojokey_image\n"
        "heavy = ('requests', 'boto3', 'PIL', 'pybase64', 'tenacity', 'opentelemetry.sdk')\n"
        "print('HEAVY', *[name for name in set(sys.modules) - before if name.startswith(heavy)])\n"
        "print('BATCH', *[name for name in sys.modules if name.startswith('airflow_provider_jojokey') and 'batch' in name])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert run.stdout.splitlines()[-2:] == ["HEAVY", "BATCH"]
