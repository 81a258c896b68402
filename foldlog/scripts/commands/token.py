"""`foldlog token`: granting, listing and revoking tokens."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import click

from foldlog.api.http.access import CALLER_SECONDS_MAX
from foldlog.domain.access import (
    EVERY_SPACE,
    TOKEN_BYTES,
    Grant,
    Role,
    Token,
    check_space,
    check_space_or_all,
    new_token,
)
from foldlog.domain.errors import InvalidRequest, UnknownToken
from foldlog.domain.ports import Registry
from foldlog.domain.times import format_time, to_ms
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import BY, err, print_rows, quiet_logs, report_errors, with_database


@click.group("token")
def token_command() -> None:
    """Who may do what: grant, list and revoke tokens.

    Granting and revoking are events in the log of each space. A token of every space is in none.
    """


@token_command.command("new")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True)
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="SPACE",
    help="What it is for; may be given several times.",
)
@click.option("--every-space", "is_of_every_space", is_flag=True, help="It is for all of them.")
@click.option("--device", help="Of the role `device`: its id. By default a new one is made.")
@click.option("--name", help="What a person calls it. It stays in the log.")
@click.option("--expires", type=click.DateTime(), help="When it ends by itself, in UTC.")
@BY
@with_database
@report_errors
def new_command(
    role: str,
    spaces: tuple[str, ...],
    is_of_every_space: bool,
    device: str | None,
    name: str | None,
    expires: datetime | None,
    by: str,
    data: str | None,
    database_url: str | None,
) -> None:
    """Grant a token. It is printed, this once, and nothing else is."""
    quiet_logs()
    if bool(spaces) is is_of_every_space:
        raise click.UsageError("say what it is for: either --space or --every-space")
    if role == Role.DEVICE.value and device is None:
        device = str(uuid.uuid4())
    grant = Grant(
        role=Role(role),
        device=device,
        name=name,
        expires_at=None if expires is None else _ms(expires),
    )
    grant.check(time.time_ns() // 1_000_000)
    for space in spaces:
        check_space(space)
    id, (text, digest) = str(uuid.uuid4()), new_token(secrets.token_bytes(TOKEN_BYTES))
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        granted = parts.registry.grant_all(spaces or (EVERY_SPACE,), id, digest, grant, by)
    where = _named(token.space for token in granted)
    err.print(f"token {id} of the role {role} for {where}", soft_wrap=True, highlight=False)
    if device is not None:
        err.print(f"it may write as device {device}", soft_wrap=True, highlight=False)
    click.echo(text)


@token_command.command("list")
@click.argument("space", default=EVERY_SPACE)
@with_database
@report_errors
def list_command(space: str, data: str | None, database_url: str | None) -> None:
    """List the tokens of SPACE, or those of every space."""
    quiet_logs()
    check_space_or_all(space)
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        tokens = parts.registry.tokens(space)
    print_rows(
        ("id", "role", "device", "name", "granted", "by", "state", "revoked by", "why"),
        (
            (
                token.id,
                token.role.value,
                token.device,
                token.name,
                format_time(token.granted_at),
                token.granted_by,
                _state(token),
                token.revoked_by,
                token.revoked_reason,
            )
            for token in tokens
        ),
    )


@token_command.command("revoke")
@click.argument("id")
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="SPACE",
    help="Only there; may be given several times. [default: wherever it was granted]",
)
@click.option("--reason", required=True, help="Why. It stays in the log for ever: name no person.")
@BY
@with_database
@report_errors
def revoke_command(
    id: str,
    spaces: tuple[str, ...],
    reason: str,
    by: str,
    data: str | None,
    database_url: str | None,
) -> None:
    """Revoke the token of this ID. When this has ended, it is refused everywhere."""
    quiet_logs()
    for space in spaces:
        check_space(space)
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        try:
            revoked = _revoke(parts.registry, id, spaces, reason=reason, by=by)
        finally:
            time.sleep(CALLER_SECONDS_MAX)
    if not revoked:
        raise UnknownToken(f"there is no token {id!r}")
    err.print(f"revoked {id} for {_named(revoked)}", soft_wrap=True, highlight=False)


def _revoke(
    registry: Registry, id: str, spaces: tuple[str, ...], *, reason: str, by: str
) -> list[str]:
    """Revokes the token in these spaces, or wherever it is; returns where it was found."""
    found = []
    for space in dict.fromkeys(spaces or registry.spaces_of(id)):
        with suppress(UnknownToken):
            registry.revoke_token(space, id, reason=reason, by=by)
            found.append(space)
    return found


def _named(spaces: Iterable[str]) -> str:
    return ", ".join(space or "every space" for space in spaces)


def _ms(at: datetime) -> int:
    try:
        return to_ms(at.replace(tzinfo=UTC))
    except ValueError as exc:
        raise InvalidRequest(str(exc)) from exc


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return f"revoked {format_time(token.revoked_at)}"
    if token.expires_at is not None:
        return f"until {format_time(token.expires_at)}"
    return "valid"
