"""The entry point of the `foldlog` program. It lists the commands, and imports the module of a
command when the command is called.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from foldlog import __version__

from .printable import escape_output

#: Command -> module. Modules are imported on use, because that makes `foldlog --help` fast.
COMMANDS = {
    "serve": "commands.serve",
    "web": "server.web",
    "projector": "commands.serve",
    "demo": "commands.demo",
    "status": "commands.status",
    "replay": "commands.replay",
    "rebuild": "commands.rebuild",
    "token": "commands.token",
    "enrol": "commands.enrol",
    "device": "commands.device",
    "erase": "commands.erase",
    "skip": "commands.skip",
    "export": "commands.transfer",
    "import": "commands.transfer",
    "remove-import": "commands.transfer",
    "collections": "commands.collections",
    "define": "commands.collections",
    "migrate": "commands.migrate",
    "pg": "commands.pg",
    "replica": "commands.replica",
    "keys": "commands.keys",
    "fork": "commands.fork",
    "verify": "commands.verify",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f".{COMMANDS[cmd_name]}", __package__)
        except ModuleNotFoundError as exc:
            if (exc.name or "").startswith("foldlog"):
                raise
            return _without_packages(cmd_name, exc.name)
        command: Any = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command


def _without_packages(name: str, missing: str | None) -> click.Command:
    """Returns a command in place of one that cannot be imported here. `foldlog --help` lists it,
    and a call of it fails with the cure.
    """
    cure = "pip install 'foldlog[server]'"

    def refuse(**_: Any) -> None:
        raise click.ClickException(
            f"{name} needs the service's packages ({missing} is missing): {cure}"
        )

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        help=f"Needs the service's packages: {cure}.",
    )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="foldlog")
def cli() -> None:
    """Foldlog: changesets from offline devices, an immutable log, a master table.

    Exit codes: 0: done. 1: done, and the answer is negative (tables differ, a check failed).
    2: wrong usage. 3: failed; standard error says why.
    """


def main() -> None:
    """Runs the `foldlog` program. The script that pip installs calls this function.

    Files that the program creates are readable only by their owner, because databases, keys and
    exports contain user data or secrets. Whatever the program prints is safe for a terminal.
    """
    escape_output()
    os.umask(os.umask(0o077) | 0o077)
    cli()
