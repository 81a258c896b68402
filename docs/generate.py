"""Writes the generated part of docs/reference/commands.md: each command with all its options.

`make docs` runs it. tests/test_docs.py checks that each command and option is in the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from foldlog.scripts.main import cli

PAGE = Path(__file__).with_name("reference") / "commands.md"
BEGIN, END = "<!-- generated: options -->\n", "<!-- /generated -->\n"


def commands(
    command: click.Command, parent: click.Context | None = None, name: str = "foldlog"
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yields each command below `command`, groups first, with its full name."""
    context = click.Context(command, parent=parent, info_name=name.split()[-1])
    yield name, command, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from commands(found, context, f"{name} {child}")


def options_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yields the spelling and the help text of each option but `--help`."""
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record and "--help" not in record[0]:
            yield record


def section(name: str, command: click.Command, context: click.Context) -> str:
    """Returns the part of the page about one command."""
    usage = " ".join(command.collect_usage_pieces(context))
    text = re.sub(r"\n\s*\b.*", "", (command.help or "").partition("\f")[0].strip(), flags=re.S)
    lines = [f"### `{name}`", "", " ".join(text.split()), "", f"Usage: `{name} {usage}`"]
    rows = [
        f"| `{_cell(spelling)}` | {_meaning(text)} |"
        for spelling, text in options_of(command, context)
    ]
    if rows:
        lines += ["", "| option | meaning |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Returns the text for a cell of a table, without the marks of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _meaning(text: str) -> str:
    """Writes `[default: 1]` with round brackets: square ones would begin a link."""
    return _cell(text).replace("[", "(").replace("]", ")")


def generated() -> str:
    found = [one for one in commands(cli) if one[0] != "foldlog"]
    return "\n" + "\n".join(section(*one) for one in found) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + generated() + END + after, "utf-8")


if __name__ == "__main__":
    main()
