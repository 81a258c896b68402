"""`foldlog device`: registering, listing and revoking devices."""

from __future__ import annotations

import time

import click

from foldlog.api.http.access import CALLER_SECONDS_MAX
from foldlog.domain.times import format_time
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import (
    BY,
    err,
    print_rows,
    quiet_logs,
    report_errors,
    spaced,
    with_database,
)


@click.group("device")
def device_command() -> None:
    """The devices of a space: register, list and revoke them.

    Registering and revoking are events in the log of the space.
    """


@device_command.command("register")
@click.argument("space")
@click.argument("device")
@click.option("--name", help="What a person calls it. It stays in the log.")
@BY
@with_database
@report_errors
def register_command(
    space: str, device: str, name: str | None, by: str, data: str | None, database_url: str | None
) -> None:
    """Register DEVICE, a UUID, in SPACE. `foldlog token new --role device` does it, too."""
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        parts.registry.register(space, device, name=name, by=by)
    err.print(f"registered {device}", soft_wrap=True, highlight=False)


@device_command.command("list")
@click.argument("space")
@with_database
@report_errors
def list_command(space: str, data: str | None, database_url: str | None) -> None:
    """List the devices of SPACE that have pushed, or were registered or revoked."""
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        devices = parts.registry.devices(space)
    print_rows(
        ("device", "name", "changesets", "last seen", "revoked"),
        (
            (
                device.device,
                device.name,
                spaced(device.counter),
                _time(device.last_seen),
                _time(device.revoked_at),
            )
            for device in devices
        ),
    )


@device_command.command("revoke")
@click.argument("space")
@click.argument("device")
@click.option("--reason", required=True, help="Why. It stays in the log for ever: name no person.")
@BY
@with_database
@report_errors
def revoke_command(
    space: str, device: str, reason: str, by: str, data: str | None, database_url: str | None
) -> None:
    """Revoke DEVICE in SPACE, for ever. When this has ended, it is refused everywhere."""
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        try:
            parts.registry.revoke_device(space, device, reason=reason, by=by)
        finally:
            time.sleep(CALLER_SECONDS_MAX)
    err.print(f"revoked {device} in {space}", soft_wrap=True, highlight=False)


def _time(ms: int | None) -> str:
    return "" if ms is None else format_time(ms)
