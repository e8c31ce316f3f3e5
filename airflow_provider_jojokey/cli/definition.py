"""What ``airflow jojokey`` understands.

Airflow 3.2 and newer imports this at each of its commands, so it is a description and nothing else: what a
command needs is imported when the command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

GROUP = "jojokey"
HELP = "Make images with JojoKey, check the connections, add up what images have cost"

_EXIT_CODES = """\
exit codes: 0 done; 1 failed, nothing was billed, and trying again would end the same; 2 wrong usage;
3 failed, nothing was billed, and trying again may help; 4 failed, and it was or may have been billed"""


def get_jojokey_commands() -> list[CLICommand]:
    """Return the commands, as the provider's metadata announce them under ``cli``."""
    from airflow.cli import cli_config
    from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, GroupCommand, lazy_load_command

    Arg: Any = cli_config.Arg  # it has no types
    jojokey_conn_id = Arg(
        ("--jojokey-conn-id",),
        help="The connection to JojoKey (default: jojokey_default)",
        default="jojokey_default",
        metavar="ID",
    )
    aws_conn_id = Arg(
        ("--aws-conn-id",),
        help="The connection to S3 (default: aws_default)",
        default="aws_default",
        metavar="ID",
    )

    s3_extra_args = Arg(
        ("--s3-extra-args",),
        help="Additional S3 parameters for every object, as JSON (default: [jojokey] s3_extra_args)",
        metavar="JSON",
    )

    check = ActionCommand(
        name="check",
        help="Tell whether images can be made and stored. Costs nothing",
        description="Tell whether the connection, the token, the model and the bucket are as they should be, "
        "and what the token may still spend. Nothing is generated and nothing is billed.",
        epilog="exit codes: 0 all is well; 1 something has to be put right; 2 wrong usage",
        func=lazy_load_command("airflow_provider_jojokey.cli.check.check"),
        args=(
            Arg(
                ("--bucket",),
                help="A bucket to try, or s3://bucket/prefix: a small object is written there and deleted "
                "(default: the bucket that the AWS connection names, if it names one)",
                metavar="BUCKET",
            ),
            jojokey_conn_id,
            aws_conn_id,
            s3_extra_args,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    generate = ActionCommand(
        name="generate",
        help="Make images, pay for them, and store them",
        description="Make images. With an s3:// place it goes the operator's way, receipt included: the same "
        "command again pays nothing. With a file or a directory there is no receipt, and each run pays.",
        epilog=_EXIT_CODES,
        func=lazy_load_command("airflow_provider_jojokey.cli.generate.generate"),
        args=(
            Arg(("prompt",), help="What to draw, 1 to 32,000 characters; - reads it from standard input"),
            Arg(
                ("--out",),
                help="s3://bucket/key, s3:///key for the AWS connection's bucket, a file, or a directory "
                "(default: the current one). {index} and {ext} are filled in, as in the operator's s3_key",
                default=".",
                metavar="PLACE",
            ),
            Arg(("--overwrite",), help="Replace what is there already", action="store_true"),
            Arg(("--model",), help="The model (default: the connection's)"),
            Arg(
                ("--size",), help="auto, or WIDTHxHEIGHT in pixels (default: 1024x1024)", default="1024x1024"
            ),
            Arg(
                ("--quality",),
                help="low, medium, high or auto (default: low); another name is left to the gateway",
                default="low",
            ),
            Arg(("-n", "--number"), help="How many images, 1 to 10 (default: 1)", type=int, default=1),
            Arg(("--background",), help="auto, opaque or transparent"),
            Arg(("--image-format",), help="png, jpeg or webp"),
            Arg(("--compression",), help="0 to 100 (JPEG and WebP)", type=int),
            Arg(("--moderation",), help="auto or low"),
            Arg(
                ("--stream",),
                help="Ask for the event stream, which keeps the connection of a long generation alive",
                action="store_true",
            ),
            Arg(
                ("--reuse",),
                help="always: take what was paid for already at this place in S3, for the same request "
                "(default); never: pay for a new image",
                choices=("always", "never"),
                default="always",
            ),
            Arg(
                ("--on-unknown-outcome",),
                help="Where an earlier attempt may have been billed and gave nothing: fail (default), or "
                "regenerate, which may pay twice",
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
    ledger = ActionCommand(
        name="ledger",
        help="Add up what images have cost, from the receipts in S3",
        description="Add up the receipts in a bucket: tokens, images and paid requests by Dag, day, model or "
        "Dag run. Memory does not grow with the number of receipts.",
        epilog="exit codes: 0 all receipts were read; 1 some could not be read, or the bucket refused; 2 wrong usage; "
        "3 S3 could not be reached",
        func=lazy_load_command("airflow_provider_jojokey.cli.ledger.ledger"),
        args=(
            Arg(("--bucket",), help="The bucket (default: the AWS connection's)", metavar="BUCKET"),
            Arg(("--prefix",), help="Only images whose keys begin so", default="", metavar="PREFIX"),
            Arg(
                ("--since",),
                help="Only requests sent from then on: 2026-01-31, 2026-01-31T08:00, or 7d, 24h ago. UTC",
                metavar="WHEN",
            ),
            Arg(("--until",), help="Only requests sent before then", metavar="WHEN"),
            Arg(
                ("--by",),
                help="What to add up by (default: dag)",
                choices=("dag", "day", "model", "run"),
                default="dag",
            ),
            aws_conn_id,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    uri = Arg(
        ("uri",),
        help="The image's key as given to the operator, or its receipt: s3://bucket/key, or s3:///key "
        "for the AWS connection's bucket",
    )
    attempts = ActionCommand(
        name="attempts",
        help="Show the attempts that a receipt lists, and what is known about each",
        description="Show the attempts to pay for the images at one key: when, by which task, whether they were "
        "billed, and the evidence for it. JSON and YAML have all fields.",
        epilog="exit codes: 0 done; 1 no receipt, or it can't be read; 2 wrong usage; 3 S3 could not be reached",
        func=lazy_load_command("airflow_provider_jojokey.cli.receipts.attempts"),
        args=(uri, aws_conn_id, ARG_OUTPUT, ARG_VERBOSE),
    )
    resolve = ActionCommand(
        name="resolve",
        help="Record whether an attempt with an unknown outcome was billed",
        description="Record in the receipt what JojoKey support, or another person, states about an attempt whose "
        "response was lost. After --not-billed, a cleared task generates the image and pays once.",
        epilog="exit codes: 0 recorded; 1 not recorded; 2 wrong usage; 3 S3 could not be reached",
        func=lazy_load_command("airflow_provider_jojokey.cli.receipts.resolve"),
        args=(
            uri,
            Arg(("--billed",), help="It was billed", action="store_true"),
            Arg(("--not-billed",), help="It was not billed, or was refunded", action="store_true"),
            Arg(("--note",), help="Where this is known from, such as a support ticket"),
            Arg(
                ("--request-id",), help="The gateway's ID of the request, to look up its usage", metavar="ID"
            ),
            Arg(("--attempt",), help="The attempt's ID or its beginning, if there are several", metavar="ID"),
            aws_conn_id,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    return [GroupCommand(name=GROUP, help=HELP, subcommands=(attempts, check, generate, ledger, resolve))]
