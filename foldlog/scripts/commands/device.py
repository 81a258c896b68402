"""Implements `foldlog device`, which registers, lists and revokes devices."""

from __future__ import annotations

import time

import click

from foldlog.api.http.access import CALLER_SECONDS_MAX
from foldlog.domain.times import format_time
from foldlog.scripts.console import (
    BY,
    REASON,
    err,
    print_rows,
    report_errors,
    spaced,
    with_database,
)
from foldlog.scripts.services import open_services


@click.group("device")
def device_command() -> None:
    """Register, list and revoke the devices of a space.

    Registering or revoking a device appends an event to the log of the space.
    """


@device_command.command("register")
@click.argument("space")
@click.argument("device")
@click.option("--name", help="Give the device a readable name. It stays in the log forever.")
@BY
@with_database
@report_errors
def register_command(
    space: str, device: str, name: str | None, by: str, data: str | None, database_url: str | None
) -> None:
    """Register DEVICE, a UUID, in SPACE.

    `foldlog token new --role device` also registers the device, so you do not need this command
    before it.
    """
    with open_services(data, database_url) as parts:
        parts.registry.register(space, device, name=name, by=by)
    err.print(f"registered {device}", soft_wrap=True, highlight=False)


@device_command.command("list")
@click.argument("space")
@with_database
@report_errors
def list_command(space: str, data: str | None, database_url: str | None) -> None:
    """List the devices of SPACE.

    Prints the devices that have pushed a changeset, and those that were registered or revoked.
    """
    with open_services(data, database_url) as parts:
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
@REASON
@BY
@with_database
@report_errors
def revoke_command(
    space: str, device: str, reason: str, by: str, data: str | None, database_url: str | None
) -> None:
    """Revoke DEVICE in SPACE forever.

    When the command has ended, every process of the service refuses the device's requests.
    """
    with open_services(data, database_url) as parts:
        try:
            parts.registry.revoke_device(space, device, reason=reason, by=by)
        finally:
            time.sleep(CALLER_SECONDS_MAX)  # until each process's cached caller has expired
    err.print(f"revoked {device} in {space}", soft_wrap=True, highlight=False)


def _time(ms: int | None) -> str:
    return "" if ms is None else format_time(ms)
