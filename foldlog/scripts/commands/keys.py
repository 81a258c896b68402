"""`foldlog keys`: the keys that sign checkpoints."""

from __future__ import annotations

import click
import msgspec

from foldlog.domain.notes import Verifier, origin_of
from foldlog.infrastructure.settings import Settings, read_settings
from foldlog.infrastructure.signing.keys import KeyRing, make_keys, read_keys, rotate_keys
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import err, fail, quiet_logs, report_errors, with_database


@click.group("keys")
def keys_command() -> None:
    """The keys that sign checkpoints: in FOLDLOG_KEYS, else in `keys` of the data folder.

    They are not in the database. Keep a copy of the file in a safe place.
    """


def with_keys(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--keys", metavar="DIR", help="Folder of the keys. [env: FOLDLOG_KEYS]"),
        click.option("--data", metavar="DIR", help="The data folder. [env: FOLDLOG_DATA]"),
    ):
        command = option(command)
    return command


@keys_command.command("new")
@with_keys
@report_errors
def new_command(keys: str | None, data: str | None) -> None:
    """Make a key, if there is none; `serve` does so for its own database."""
    settings = read_settings(data=data, keys=keys)
    if read_keys(settings.keys_folder).log:
        fail(f"there is a key in {settings.keys_folder}: foldlog keys rotate")
    _tell(make_keys(settings.keys_folder), settings)


@keys_command.command("rotate")
@with_keys
@report_errors
def rotate_command(keys: str | None, data: str | None) -> None:
    """Sign with a new key from now on; the old one stays listed for what it has signed."""
    settings = read_settings(data=data, keys=keys)
    rotate_keys(settings.keys_folder)
    err.print("hand the new ones to auditors and witnesses: foldlog keys show SPACE")


@keys_command.command("list")
@with_keys
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@report_errors
def list_command(keys: str | None, data: str | None, as_json: bool) -> None:
    """List the public halves, and when each was made and retired."""
    settings = read_settings(data=data, keys=keys)
    ring = read_keys(settings.keys_folder)
    for use, of_use in (("log", ring.log), ("witness", ring.witness)):
        for key in of_use:
            if as_json:
                public = {"use": use, "public": key.public, "made_at": key.made_at}
                line = msgspec.json.encode({**public, "retired_at": key.retired_at})
                click.echo(line.decode())
            else:
                until = f"until {key.retired_at}" if key.retired_at else "signs"
                click.echo(f"{use:8} {key.public}  from {key.made_at}  {until}")


@keys_command.command("show")
@click.argument("space")
@with_database
@click.option("--keys", metavar="DIR", help="Folder of the keys. [env: FOLDLOG_KEYS]")
@report_errors
def show_command(space: str, keys: str | None, data: str | None, database_url: str | None) -> None:
    """Print the verifier's keys (vkey) of the log of SPACE, the present one first.

    Hand the first one to auditors and witnesses, by another way than the log itself.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url, keys=keys)
    with database(settings) as db, services(db.url, settings) as parts:
        found = parts.verifiers(space)
    if not found:
        fail(f"there is no key in {settings.keys_folder}: foldlog keys new")
    for verifier in found:
        click.echo(verifier.vkey)


def _tell(ring: KeyRing, settings: Settings) -> None:
    err.print(f"keys are in {settings.keys_folder}", soft_wrap=True, highlight=False)
    example = Verifier(origin_of(settings.origin, "SPACE", "LOG"), b"")
    err.print(f"logs sign as {example.name}", soft_wrap=True, highlight=False)
    witness = ring.cosigner_verifier(settings.witness_name)
    if witness is not None:
        click.echo(witness.vkey)
