"""Implements `foldlog enrol`, which issues the code with which a new device gets its token."""

from __future__ import annotations

import secrets
import time
import uuid

import click

from foldlog.domain.access import check_space
from foldlog.domain.enrolment import CODE_BYTES, CODE_SECONDS, Enrolment, new_code
from foldlog.domain.times import format_time
from foldlog.scripts.console import BY, TIME, err, report_errors, say, with_database
from foldlog.scripts.services import open_services


@click.command("enrol")
@click.option("--space", required=True, metavar="SPACE", help="Let the device into this space.")
@click.option("--name", help="Give the device a readable name. It stays in the log forever.")
@click.option(
    "--expires",
    type=TIME,
    metavar="TIME",
    help="Expiry time of the code (RFC 3339), within 30 days. [default: in an hour]",
)
@BY
@with_database
@report_errors
def enrol_command(
    space: str,
    name: str | None,
    expires: int | None,
    by: str,
    data: str | None,
    database_url: str | None,
) -> None:
    """Print a one-time code with which one new device gets a token.

    The device uses it by `foldlog.open(..., enrol=CODE)`, and makes its token by itself. The
    service stores only a hash of the code, so copy the code now.
    """
    check_space(space)
    now_ms = time.time_ns() // 1_000_000
    enrolment = Enrolment(
        id=str(uuid.uuid4()),
        name=name,
        issued_at=now_ms,
        issued_by=by,
        expires_at=now_ms + CODE_SECONDS * 1_000 if expires is None else expires,
    )
    enrolment.check()
    code, digest = new_code(secrets.token_bytes(CODE_BYTES))
    with open_services(data, database_url) as parts:
        parts.registry.issue_code(space, digest, enrolment)
    until = format_time(enrolment.expires_at)
    err.print(
        f"one device may enrol in {space} with this code until {until}",
        soft_wrap=True,
        highlight=False,
    )
    say(code)
