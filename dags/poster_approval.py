"""A person picks the poster: three candidates a round, three rounds at most.

Each round makes three pictures and asks for a decision under *Required Actions*. The pick is copied to the
public prefix. Who likes none of them says what should be different, and these words join the prompt of the
next round. Each picture is paid for once, however long the person thinks.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, TaskGroup, get_current_context, task

from airflow_provider_jojokey.markdown import escape, pictures
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

ROUNDS = 3
PICKS = ["Publish 1", "Publish 2", "Publish 3"]
NONE = "None of them"
MORE = f"{NONE}: pay for {len(PICKS)} more"
BUCKET = "{{ var.value.get('posters_bucket', 'posters') }}"


def wishes(ti: Any) -> list[str]:
    """Return what the person has asked for in the rounds so far."""
    answers = ti.xcom_pull(task_ids=[f"round_{number}.review" for number in range(1, ROUNDS + 1)])
    said = [(answer or {}).get("params_input", {}).get("wishes") for answer in answers or []]
    return [one.strip() for one in said if one and one.strip()]


@task.branch
def decide(answer: dict[str, Any], otherwise: str) -> str:
    """Return where to go on: nobody's pick leads to another round."""
    return "publish" if answer["chosen_options"][0] in PICKS else otherwise


def one_round(number: int) -> tuple[GenerateImageOperator, Any]:
    """Add the tasks of one round, and return the first and the last."""
    with TaskGroup(f"round_{number}"):
        candidates = GenerateImageOperator(
            task_id="candidates",
            prompt="{{ params.prompt }}{% for wish in wishes(ti) %}\nChange this: {{ wish }}{% endfor %}",
            s3_bucket=BUCKET,
            s3_key="approval/{{ run_id | replace(':', '-') }}/" + f"round-{number}-{{index}}.{{ext}}",
            size="{{ params.size }}",
            quality="{{ params.quality }}",
            n=len(PICKS),
            retries=3,
        )
        review = HITLOperator(
            task_id="review",
            subject=f"Which poster shall be published? (round {number} of {ROUNDS})",
            body=f"{{{{ pictures(ti, '{candidates.task_id}') }}}}\n\n**Asked for:** {{{{ escape(params.prompt) }}}}"
            "{% for wish in wishes(ti) %}\n\n**Changed:** {{ escape(wish) }}{% endfor %}",
            options=[*PICKS, MORE if number < ROUNDS else NONE],
            params={
                "wishes": Param(
                    "",
                    type=["string", "null"],
                    format="multiline",
                    title="What should be different?",
                    description=f"With '{MORE}', these words join the prompt of the next round."
                    if number < ROUNDS
                    else "This is the last round: with 'None of them', nothing is published.",
                )
            },
            response_timeout=timedelta(days=7),
        )
        otherwise = f"round_{number + 1}.candidates" if number < ROUNDS else "nothing_published"
        decision = decide(review.output, otherwise)
        candidates >> review
    return candidates, decision


@task(trigger_rule="none_failed_min_one_success")
def publish(bucket: str) -> str:
    """Copy the pick to the public prefix and return its place."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    ti = get_current_context()["ti"]
    for number in range(ROUNDS, 0, -1):
        answer = ti.xcom_pull(task_ids=f"round_{number}.review")
        if answer and answer["chosen_options"][0] in PICKS:
            break
    else:
        raise ValueError("Nobody has picked a poster.")
    keys = ti.xcom_pull(task_ids=f"round_{number}.candidates", key="keys")
    key = keys[PICKS.index(answer["chosen_options"][0])]
    public = "public/" + key.removeprefix("approval/")
    S3Hook().copy_object(key, public, source_bucket_name=bucket, dest_bucket_name=bucket)
    return f"s3://{bucket}/{public}"


with DAG(
    dag_id="poster_approval",
    description="Three candidates, a person's choice, and the pick is published.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "approval"],
    user_defined_macros={"pictures": pictures, "escape": escape, "wishes": wishes},
    params={
        "prompt": Param(
            "A night market in the rain, lanterns, a screen-printed poster",
            type="string",
            title="Prompt",
            description="What the poster shows.",
        ),
        "size": Param("1024x1536", enum=["1024x1024", "1024x1536", "1536x1024"], title="Size"),
        "quality": Param("low", enum=["low", "medium", "high"], title="Quality"),
    },
):
    published = publish(BUCKET)
    rounds = [one_round(number) for number in range(1, ROUNDS + 1)]
    for (_, decision), (candidates, _) in pairwise(rounds):
        decision >> [candidates, published]
    rounds[-1][1] >> [published, EmptyOperator(task_id="nothing_published")]
