"""Ask a person to approve a poster: three candidates per round, at most three rounds.

Each round generates three candidates and asks for a decision under *Required Actions*. The Dag copies the chosen
poster to the public prefix. If you like none of them, describe what to change: the next round adds your words to the
prompt. Each image is paid for once, however long the decision takes.
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
CHOICES = ["Publish 1", "Publish 2", "Publish 3"]
NONE_OF_THEM = "None of them"
NEXT_ROUND = f"{NONE_OF_THEM}: pay for {len(CHOICES)} more"
BUCKET = "{{ var.value.get('posters_bucket', 'posters') }}"


def changes(ti: Any) -> list[str]:
    """Return the changes that were requested in earlier rounds."""
    answers = ti.xcom_pull(task_ids=[f"round_{number}.review" for number in range(1, ROUNDS + 1)])
    texts = [(answer or {}).get("params_input", {}).get("changes") for answer in answers or []]
    return [text.strip() for text in texts if text and text.strip()]


@task.branch
def decide(answer: dict[str, Any], otherwise: str) -> str:
    """Return the next task: publish the chosen poster, or start another round."""
    return "publish" if answer["chosen_options"][0] in CHOICES else otherwise


def add_round(number: int) -> tuple[GenerateImageOperator, Any]:
    """Add the tasks of a round; return the first and the last."""
    with TaskGroup(f"round_{number}"):
        candidates = GenerateImageOperator(
            task_id="candidates",
            prompt="{{ params.prompt }}{% for change in changes(ti) %}\nChange this: {{ change }}{% endfor %}",
            s3_bucket=BUCKET,
            s3_key="approval/{{ run_id | replace(':', '-') }}/" + f"round-{number}-{{index}}.{{ext}}",
            size="{{ params.size }}",
            quality="{{ params.quality }}",
            n=len(CHOICES),
            retries=3,
        )
        review = HITLOperator(
            task_id="review",
            subject=f"Which poster do you want to publish? (round {number} of {ROUNDS})",
            body=f"{{{{ pictures(ti, '{candidates.task_id}') }}}}\n\n**Prompt:** {{{{ escape(params.prompt) }}}}"
            "{% for change in changes(ti) %}\n\n**Changed:** {{ escape(change) }}{% endfor %}",
            options=[*CHOICES, NEXT_ROUND if number < ROUNDS else NONE_OF_THEM],
            params={
                "changes": Param(
                    "",
                    type=["string", "null"],
                    format="multiline",
                    title="What should change?",
                    description=f"With '{NEXT_ROUND}', the next round adds these words to the prompt."
                    if number < ROUNDS
                    else "This is the last round. With 'None of them', nothing is published.",
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
    """Copy the chosen poster to the public prefix, and show it in the tab; return its location."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_jojokey.results import XCOM_KEY, Result, StoredImage

    ti = get_current_context()["ti"]
    for number in range(ROUNDS, 0, -1):
        answer = ti.xcom_pull(task_ids=f"round_{number}.review")
        if answer and answer["chosen_options"][0] in CHOICES:
            break
    else:
        raise ValueError("No poster was chosen.")
    candidates = Result.from_xcom(ti.xcom_pull(task_ids=f"round_{number}.candidates", key=XCOM_KEY))
    if candidates is None:
        raise ValueError(f"Round {number} has no images.")
    chosen = candidates.images[CHOICES.index(answer["chosen_options"][0])]
    key = "public/" + chosen.key.removeprefix("approval/")
    s3 = S3Hook()
    s3.copy_object(chosen.key, key, source_bucket_name=chosen.bucket, dest_bucket_name=bucket)
    published = StoredImage.from_json({**chosen.to_json(), "bucket": bucket, "key": key})
    result = Result(
        state="complete",
        images=(published,),
        count=1,
        prompt=candidates.prompt,
        derived_from=chosen.uri,
        aws_conn_id=s3.aws_conn_id,
    )
    ti.xcom_push(key=XCOM_KEY, value=result.to_xcom())
    return published.uri


with DAG(
    dag_id="poster_approval",
    description="Generate three candidates, ask a person to choose one, and publish it.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "approval"],
    user_defined_macros={"pictures": pictures, "escape": escape, "changes": changes},
    params={
        "prompt": Param(
            "A night market in the rain, lanterns, a screen-printed poster",
            type="string",
            title="Prompt",
            description="What the poster shows.",
        ),
        "size": Param("1024x1536", enum=["1024x1024", "1024x1536", "1536x1024"], title="Size"),
        "quality": Param(
            "low",
            enum=["low", "medium", "high"],
            title="Quality",
            description="At list prices, a round of three posters costs about USD 0.03 (low), 0.24 (medium) or "
            "0.95 (high).",
        ),
    },
):
    published = publish(BUCKET)
    rounds = [add_round(number) for number in range(1, ROUNDS + 1)]
    for (_, decision), (candidates, _) in pairwise(rounds):
        decision >> [candidates, published]
    rounds[-1][1] >> [published, EmptyOperator(task_id="nothing_published")]
