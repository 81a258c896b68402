"""The group of all commands."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from foldlog import __version__

#: command -> module, imported when it is called: a shell waits for `foldlog --help` every time
COMMANDS = {
    "serve": "commands.serve",
    "web": "server.web",
    "projector": "commands.serve",
    "demo": "commands.demo",
    "status": "commands.status",
    "replay": "commands.replay",
    "rebuild": "commands.rebuild",
    "token": "commands.token",
    "device": "commands.device",
    "erase": "commands.erase",
    "skip": "commands.skip",
    "export": "commands.transfer",
    "import": "commands.transfer",
    "collections": "commands.collections",
    "define": "commands.collections",
    "migrate": "commands.migrate",
    "pg": "commands.pg",
    "replica": "commands.replica",
    "keys": "commands.keys",
    "fork": "commands.fork",
    "verify": "commands.verify",
}


class _Lazy(click.Group):
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
            raise click.ClickException(
                f"{cmd_name} is of the service: pip install 'foldlog[server]' (no {exc.name})"
            ) from exc
        command: Any = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="foldlog")
def cli() -> None:
    """Foldlog: offline changesets in, an immutable log, a master table, event ranges out.

    Exit codes: 0 done; 1 done, and the answer is no (tables differ, a check failed);
    2 mistyped; 3 could not be done.
    """


def main() -> None:
    """The command as it is installed. Whatever it makes is for its owner alone: databases, keys and
    exports hold what users wrote, and what proves it."""
    os.umask(os.umask(0o077) | 0o077)
    cli()
