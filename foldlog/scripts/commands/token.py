"""Implements `foldlog token`, which makes, lists and revokes access tokens."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress

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
from foldlog.domain.errors import UnknownToken
from foldlog.domain.ports import Registry
from foldlog.domain.times import format_time
from foldlog.scripts.console import (
    BY,
    REASON,
    TIME,
    err,
    print_rows,
    report_errors,
    say,
    with_database,
)
from foldlog.scripts.services import open_services


@click.group("token")
def token_command() -> None:
    """Grant, list and revoke access tokens.

    Granting or revoking a token appends an event to the log of each of its spaces. A token for
    every space is recorded in a table of the database, outside of the logs.
    """


@token_command.command("new")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="Give the token this role, which decides its rights.",
)
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="SPACE",
    help="Make the token valid in this space; can be repeated.",
)
@click.option("--every-space", "is_of_every_space", is_flag=True, help="Make it valid everywhere.")
@click.option("--device", help="Device id (UUID), for the role `device`. [default: a new id]")
@click.option("--name", help="Give it a readable name. It stays in the log forever.")
@click.option(
    "--expires",
    type=TIME,
    metavar="TIME",
    help="Expiry time (RFC 3339), such as 2099-01-01T00:00:00Z. [default: never]",
)
@BY
@with_database
@report_errors
def new_command(
    role: str,
    spaces: tuple[str, ...],
    is_of_every_space: bool,
    device: str | None,
    name: str | None,
    expires: int | None,
    by: str,
    data: str | None,
    database_url: str | None,
) -> None:
    """Grant a token and print it to standard output.

    Copy the token now: the service stores only its hash, and cannot show it again.
    """
    if bool(spaces) is is_of_every_space:
        raise click.UsageError("give either --space or --every-space")
    if role == Role.DEVICE.value and device is None:
        device = str(uuid.uuid4())
    grant = Grant(
        role=Role(role),
        device=device,
        name=name,
        expires_at=expires,
    )
    grant.check(time.time_ns() // 1_000_000)
    for space in spaces:
        check_space(space)
    id, (text, digest) = str(uuid.uuid4()), new_token(secrets.token_bytes(TOKEN_BYTES))
    with open_services(data, database_url) as parts:
        granted = parts.registry.grant_all(spaces or (EVERY_SPACE,), id, digest, grant, by)
    where = _named(token.space for token in granted)
    err.print(f"token {id} of the role {role} for {where}", soft_wrap=True, highlight=False)
    if device is not None:
        err.print(f"it may write as device {device}", soft_wrap=True, highlight=False)
    say(text)


@token_command.command("list")
@click.argument("space", default=EVERY_SPACE)
@with_database
@report_errors
def list_command(space: str, data: str | None, database_url: str | None) -> None:
    """List the tokens of SPACE.

    Without SPACE, lists the tokens that are valid in every space.
    """
    check_space_or_all(space)
    with open_services(data, database_url) as parts:
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
    help="Revoke it in this space only; can be repeated. [default: in all of its spaces]",
)
@REASON
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
    """Revoke the token with this ID.

    When the command has ended, every process of the service refuses the token.
    """
    for space in spaces:
        check_space(space)
    with open_services(data, database_url) as parts:
        try:
            revoked = _revoke(parts.registry, id, spaces, reason=reason, by=by)
        finally:
            time.sleep(CALLER_SECONDS_MAX)  # until each process's cached caller has expired
    if not revoked:
        raise UnknownToken(f"there is no token {id!r}")
    err.print(f"revoked {id} for {_named(revoked)}", soft_wrap=True, highlight=False)


def _revoke(
    registry: Registry, id: str, spaces: tuple[str, ...], *, reason: str, by: str
) -> list[str]:
    """Revokes the token with this id in the given spaces. If `spaces` is empty, revokes the token
    in every space where it was granted.

    Returns a list of the spaces in which the token was revoked. A given space that has no such
    token is skipped, and is missing from the list.
    """
    found = []
    for space in dict.fromkeys(spaces or registry.spaces_of(id)):
        with suppress(UnknownToken):
            registry.revoke_token(space, id, reason=reason, by=by)
            found.append(space)
    return found


def _named(spaces: Iterable[str]) -> str:
    return ", ".join(space or "every space" for space in spaces)


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return f"revoked {format_time(token.revoked_at)}"
    if token.expires_at is not None:
        return f"until {format_time(token.expires_at)}"
    return "valid"
