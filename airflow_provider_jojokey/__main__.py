"""``python -m airflow_provider_jojokey``: the commands of ``airflow jojokey``, also for Airflow before 3.2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: without the program's name; by default those of the process
    :raises SystemExit: with the exit code, if it is not 0
    """
    options = _parser().parse_args(arguments)
    options.func(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    from airflow.cli.cli_config import GroupCommand

    from airflow_provider_jojokey.cli.definition import get_jojokey_commands

    (group,) = get_jojokey_commands()
    assert isinstance(group, GroupCommand)
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_jojokey", description=group.help)
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for definition in group.subcommands:
        command = commands.add_parser(
            definition.name,
            help=definition.help,
            description=getattr(definition, "description", None) or definition.help,
            epilog=getattr(definition, "epilog", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an exit code per line
        )
        for argument in getattr(definition, "args", ()):
            argument.add_to_parser(command)
        command.set_defaults(func=getattr(definition, "func", None))
        _shorten_usage(command)
    return parser


def _shorten_usage(command: argparse.ArgumentParser) -> None:
    """Let the usage begin below the program's long name, so that it fits 80 columns."""
    prog, command.prog = command.prog, ""
    rest = command.format_usage().removeprefix("usage:").strip().replace("%", "%%")
    command.prog, command.usage = prog, f"{prog}\n        {rest}"


if __name__ == "__main__":
    sys.exit(main())
