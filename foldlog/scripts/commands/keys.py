"""Implements `foldlog keys`, which manages the keys and the folder that sign checkpoints."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.markup import escape

from foldlog.domain.notes import Verifier, origin_of
from foldlog.infrastructure.postgres.proofs.signers import Signers
from foldlog.infrastructure.settings import Settings, read_settings
from foldlog.infrastructure.signing.folders import FILE
from foldlog.infrastructure.signing.keys import KeyRing, make_keys, read_keys, rotate_keys
from foldlog.infrastructure.signing.takeover import take_over_cosigning, take_over_signing
from foldlog.scripts.console import (
    AS_JSON,
    err,
    fail,
    report_errors,
    say,
    with_database,
)
from foldlog.scripts.services import open_services

KEYS = click.option("--keys", metavar="DIR", help="Folder of the keys. [env: FOLDLOG_KEYS]")
DATA = click.option(
    "--data", metavar="DIR", help="The data folder. [env: FOLDLOG_DATA] [default: foldlog-data]"
)


@click.group("keys")
def keys_command() -> None:
    """Manage the keys that sign checkpoints.

    The keys are files in the folder FOLDLOG_KEYS, by default `keys` in the data folder. The
    database does not contain the keys, so keep a copy of keys.json in a safe place.
    """


@keys_command.command("new")
@DATA
@KEYS
@report_errors
def new_command(keys: str | None, data: str | None) -> None:
    """Make the first key.

    With the embedded database, `foldlog serve` makes this key at its first start, so you need
    this command only with another database.
    """
    settings = read_settings(data=data, keys=keys)
    if read_keys(settings.keys_folder).log:
        fail(f"{settings.keys_folder} has a key already: to replace it, run foldlog keys rotate")
    _print_new(make_keys(settings.keys_folder), settings)


@keys_command.command("rotate")
@DATA
@KEYS
@report_errors
def rotate_command(keys: str | None, data: str | None) -> None:
    """Make a new key, which signs from now on.

    The old public key stays in the list, because it verifies the older signatures.
    """
    settings = read_settings(data=data, keys=keys)
    rotate_keys(settings.keys_folder)
    err.print("give the new key of each space to auditors and witnesses: foldlog keys show SPACE")


@keys_command.command("list")
@DATA
@KEYS
@AS_JSON
@report_errors
def list_command(keys: str | None, data: str | None, as_json: bool) -> None:
    """List the public keys, with the times when each was made and replaced."""
    settings = read_settings(data=data, keys=keys)
    ring = read_keys(settings.keys_folder)
    for use, of_use in (("log", ring.log), ("witness", ring.witness)):
        for key in of_use:
            if as_json:
                public = {"use": use, "public": key.public, "made_at": key.made_at}
                line = msgspec.json.encode({**public, "retired_at": key.retired_at})
                say(line.decode())
            else:
                until = f"until {key.retired_at}" if key.retired_at else "signs"
                say(f"{use:8} {key.public}  from {key.made_at}  {until}")


@keys_command.command("show")
@click.argument("space")
@with_database
@KEYS
@report_errors
def show_command(space: str, keys: str | None, data: str | None, database_url: str | None) -> None:
    """Print the public keys (vkeys) that verify the log of SPACE.

    The current key comes first. Give the current key to auditors and witnesses over another
    channel than this service, because the service could lie about its own key.
    """
    with open_services(data, database_url, keys=keys) as parts:
        found = parts.verifiers(space)
        if not found:
            fail(f"{parts.settings.keys_folder} has no key: run foldlog keys new")
    for verifier in found:
        say(verifier.vkey)


@keys_command.command("takeover")
@click.option(
    "--from",
    "other",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder that signed before (`checkpoints` or `witness` of its data folder), or a "
    "copy of it. It is marked, so that it never signs again.",
)
@click.option(
    "--lost",
    metavar="REASON",
    help="The folder that signed before is lost. Only this folder and the database are compared. "
    "The reason is stored.",
)
@click.option("--witness", is_flag=True, help="Take over the cosigning for other services.")
@with_database
@KEYS
@report_errors
def takeover_command(
    other: Path | None,
    lost: str | None,
    witness: bool,
    keys: str | None,
    data: str | None,
    database_url: str | None,
) -> None:
    """Let this data folder sign the logs, in place of another one.

    One folder signs the logs of a database: it remembers the last checkpoint of each log, so that
    no fork is signed. Run this command on the service that signs from now on, after you have
    stopped the other one. The command compares the checkpoints of both folders with the logs. If a
    log contradicts one of them, the command fails and changes nothing.

    With --witness only checkpoints of the same size can be compared.
    """
    if (other is None) == (lost is None):
        raise click.UsageError("give --from DIR, or --lost REASON")
    why = lost or f"compared with {other}"
    with open_services(data, database_url, keys=keys) as parts:
        ring, settings = read_keys(parts.settings.keys_folder), parts.settings
        if not ring.log or not ring.witness:
            fail(f"{settings.keys_folder} has no key: run foldlog keys new")
        if witness:
            signers = Signers(parts.datastore, "witness")
            key, own = ring.witness[-1].public, settings.witness_folder
            done = take_over_cosigning(signers, key, own=own, other=other, why=why)
        else:
            own = settings.checkpoints_folder
            done = take_over_signing(parts.tree, ring, own=own, other=other, why=why)
    for line in done.not_compared:
        err.print(f"not compared: {escape(line)}", soft_wrap=True, highlight=False)
    err.print(f"compared {done.compared} checkpoints; {own} signs from now on", soft_wrap=True)
    if other is not None:
        err.print(
            f"if {other} is a copy, copy {FILE} from it into the original folder, so that the "
            "other service never signs again",
            soft_wrap=True,
            highlight=False,
        )
    say(done.folder)


def _print_new(ring: KeyRing, settings: Settings) -> None:
    err.print(f"the keys are in {settings.keys_folder}", soft_wrap=True, highlight=False)
    example = Verifier(origin_of(settings.origin, "SPACE", "LOG"), b"")
    err.print(f"logs sign as {example.name}", soft_wrap=True, highlight=False)
    witness = ring.cosigner_verifier(settings.witness_name)
    if witness is not None:
        say(witness.vkey)
