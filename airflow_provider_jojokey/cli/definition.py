"""The arguments and help texts of ``airflow jojokey``.

Airflow 3.2 and newer imports this module at each of its commands, so it imports nothing heavy. Commands import what
they need when they run.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

GROUP = "jojokey"
HELP = "Generate images with JojoKey, check connections, and show costs"

WIDTH, HELP_WIDTH = 78, 54
"""Characters in a line of a terminal with 80 columns: of a description, and beside the name of an argument."""


def get_jojokey_commands() -> list[CLICommand]:
    """Return the commands; the provider's metadata refers to this function."""
    from airflow.cli import cli_config
    from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, GroupCommand, lazy_load_command

    # Airflow prints help texts as they are, and removes words in square brackets.
    def argument(flags: tuple[str, ...], help: str, **more: Any) -> Any:
        return cli_config.Arg(flags, help=fill(help, HELP_WIDTH, break_on_hyphens=False), **more)  # type: ignore[no-untyped-call]

    def action(name: str, description: str, exit_codes: tuple[str, ...], **more: Any) -> Any:
        description = fill(description, WIDTH, break_on_hyphens=False)
        epilog = "\n  ".join(("exit codes:", *exit_codes))
        return ActionCommand(name=name, description=description, epilog=epilog, **more)

    jojokey_conn_id = argument(
        ("--jojokey-conn-id",),
        help="The JojoKey connection (default: jojokey_default)",
        default="jojokey_default",
        metavar="ID",
    )
    aws_conn_id = argument(
        ("--aws-conn-id",),
        help="The AWS connection (default: aws_default)",
        default="aws_default",
        metavar="ID",
    )

    s3_extra_args = argument(
        ("--s3-extra-args",),
        help="Additional S3 parameters for every object, as JSON (default: the setting s3_extra_args)",
        metavar="JSON",
    )

    check = action(
        name="check",
        help="Test the connections, token, model and bucket, at no cost",
        description="Test the connections, the token, the model and the bucket, and show the balance of the token. "
        "Nothing is generated or billed.",
        exit_codes=("0 all checks passed", "1 a check failed", "2 invalid arguments"),
        func=lazy_load_command("airflow_provider_jojokey.cli.check.check"),
        args=(
            argument(
                ("--bucket",),
                help="The bucket, or s3://bucket/prefix. The command writes small objects there and deletes them "
                "(default: the AWS connection's bucket, if it has one)",
                metavar="BUCKET",
            ),
            argument(
                ("--size",),
                help="The size for which the remaining images are estimated (default: 1024x1024)",
                default="1024x1024",
            ),
            argument(
                ("--quality",),
                help="The quality for which the remaining images are estimated (default: low)",
                default="low",
            ),
            jojokey_conn_id,
            aws_conn_id,
            s3_extra_args,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    generate = action(
        name="generate",
        help="Generate images and store them. Costs money",
        description="Generate images. With an s3:// location, the command works like the operator and writes a "
        "receipt: the same command again reuses the images. A local file has no receipt, so each run pays.",
        exit_codes=(
            "0 success",
            "1 failed, not billed, and a retry would fail too",
            "2 invalid arguments",
            "3 failed, not billed, and a retry may succeed",
            "4 failed or interrupted, and billed or possibly billed",
        ),
        func=lazy_load_command("airflow_provider_jojokey.cli.generate.generate"),
        args=(
            argument(
                ("prompt",), help="The prompt, 1 to 32,000 characters, or - to read it from standard input"
            ),
            argument(
                ("--out",),
                help="s3://bucket/key, s3:///key for the AWS connection's bucket, a file, or a folder "
                "(default: the current folder). {index} and {ext} are replaced, as in the operator's s3_key",
                default=".",
                metavar="LOCATION",
            ),
            argument(("--overwrite",), help="Replace existing objects or files", action="store_true"),
            argument(("--model",), help="The model (default: the connection's)"),
            argument(
                ("--size",), help="auto, or WIDTHxHEIGHT in pixels (default: 1024x1024)", default="1024x1024"
            ),
            argument(
                ("--quality",),
                help="low, medium, high or auto (default: low). Other values are passed to the gateway",
                default="low",
            ),
            argument(("-n", "--number"), help="Number of images, 1 to 10 (default: 1)", type=int, default=1),
            argument(("--background",), help="auto, opaque or transparent"),
            argument(("--image-format",), help="png, jpeg or webp"),
            argument(("--compression",), help="0 to 100 (JPEG and WebP)", type=int),
            argument(("--moderation",), help="auto or low"),
            argument(
                ("--stream",),
                help="Request an event stream, which keeps the connection alive during a long generation",
                action="store_true",
            ),
            argument(
                ("--reuse",),
                help="always: reuse images that were paid for at this key with the same request (default); "
                "never: pay for new images",
                choices=("always", "never"),
                default="always",
            ),
            argument(
                ("--on-unknown-outcome",),
                help="If an earlier attempt may have been billed without an image: fail (default), or regenerate, "
                "which may pay twice",
                choices=("fail", "regenerate"),
                default="fail",
            ),
            jojokey_conn_id,
            aws_conn_id,
            s3_extra_args,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    ledger = action(
        name="ledger",
        help="Show what images have cost, from the receipts in S3",
        description="Add up the receipts in a bucket: cost, tokens, images and paid requests by Dag, day or model.",
        exit_codes=(
            "0 all receipts were read",
            "1 a receipt or the bucket can't be read",
            "2 invalid arguments",
            "3 S3 can't be reached",
        ),
        func=lazy_load_command("airflow_provider_jojokey.cli.ledger.ledger"),
        args=(
            argument(("--bucket",), help="The bucket (default: the AWS connection's)", metavar="BUCKET"),
            argument(
                ("--prefix",),
                help="Only images whose keys start with this prefix",
                default="",
                metavar="PREFIX",
            ),
            argument(
                ("--since",),
                help="Only requests sent since then: a UTC date or time, such as 2026-01-31T08:00, "
                "or an age, such as 7d or 24h",
                metavar="WHEN",
            ),
            argument(("--until",), help="Only requests sent before then", metavar="WHEN"),
            argument(
                ("--by",),
                help="The rows of the result: dag (default), day, model or run, or several, such as dag,model,day",
                default="dag",
            ),
            aws_conn_id,
            s3_extra_args,
            argument(
                ("-o", "--output"),
                help="Output format (default: table). CSV is for spreadsheets",
                metavar="(table, json, yaml, plain, csv)",
                choices=("table", "json", "yaml", "plain", "csv"),
                default="table",
            ),
            ARG_VERBOSE,
        ),
    )
    uri = argument(
        ("uri",),
        help="The image's key as passed to the operator, or its receipt: s3://bucket/key, or s3:///key "
        "for the AWS connection's bucket",
    )
    attempts = action(
        name="attempts",
        help="Show the attempts in a receipt, and what is known about them",
        description="Show the attempts to pay for the images at one key: when, by which task, whether they were "
        "billed, and the evidence for it. JSON and YAML have all fields.",
        exit_codes=(
            "0 success",
            "1 no receipt, or it can't be read",
            "2 invalid arguments",
            "3 S3 can't be reached",
        ),
        func=lazy_load_command("airflow_provider_jojokey.cli.receipts.attempts"),
        args=(uri, aws_conn_id, s3_extra_args, ARG_OUTPUT, ARG_VERBOSE),
    )
    resolve = action(
        name="resolve",
        help="Record whether an attempt with an unknown outcome was billed",
        description="Record in the receipt what JojoKey support, or another person, states about an attempt whose "
        "response was lost. After --not-billed, a cleared task generates the image and pays once.",
        exit_codes=("0 recorded", "1 not recorded", "2 invalid arguments", "3 S3 can't be reached"),
        func=lazy_load_command("airflow_provider_jojokey.cli.receipts.resolve"),
        args=(
            uri,
            argument(("--billed",), help="It was billed", action="store_true"),
            argument(("--not-billed",), help="It was not billed, or was refunded", action="store_true"),
            argument(("--note",), help="The source of the statement, such as a support ticket"),
            argument(
                ("--request-id",), help="The gateway's ID of the request, to look up its usage", metavar="ID"
            ),
            argument(
                ("--attempt",), help="The attempt's ID or its beginning, if there are several", metavar="ID"
            ),
            aws_conn_id,
            s3_extra_args,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    return [GroupCommand(name=GROUP, help=HELP, subcommands=(attempts, check, generate, ledger, resolve))]
