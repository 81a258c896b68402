"""Implements `foldlog demo`, which replays a real history through a running service and checks the
results.

The history is that of a public git repository (pallets/flask): its 2,252 commits are changesets,
their 125 authors are devices, and its files are records. For many commits, the demo compares the
records with the files that git lists.
"""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from pathlib import Path

import click
import httpx

from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.console import EXIT_NO, err, out, report_errors
from foldlog.scripts.demo.device import SPACE, SignIn, now
from foldlog.scripts.demo.history import read_history
from foldlog.scripts.demo.steps import FILES, Demo
from foldlog.scripts.server.process import serving


@click.command("demo")
@click.option(
    "--data", metavar="DIR", default="demo-data", help="Data folder. [default: demo-data]"
)
@click.option("--port", type=int, help="Port of the service. [default: a free one]")
@report_errors
def demo_command(data: str, port: int | None) -> None:
    """Replay a git history as 125 devices, and check the results.

    The command starts a service on its own data folder. A second run on the same folder pushes
    every changeset again, and the log stays unchanged. Exit code 1: a check failed.
    """
    command = _foldlog()
    sign_in = SignIn(Path(data))
    with (
        err.status(f"starting the service on {data}/") as status,
        serving(command, data, port, sign_in.env) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        status.stop()
        out.print(f"The service runs on {data}/ and answers at {url}", highlight=False)
        demo = Demo(command, data, http, sign_in, read_history())
        demo.replay()
        demo.push_again()
        demo.check_table()
        demo.check_new_device()
        demo.check_moments()
        demo.check_rebuild()
        reader = demo.new_token("--role", "reader", "--space", SPACE)
        demo.check_access(demo.new_token("--role", "admin", "--every-space"), reader)
        device = str(uuid.uuid4())
        writer = demo.new_token("--role", "device", "--device", device, "--space", SPACE)
    if demo.failed:
        err.print(f"[red]{demo.failed} checks failed[/red]")
        sys.exit(EXIT_NO)
    out.print(f"\nAll checks passed. The data is in {data}/ .", highlight=False)
    _print_next(demo, reader, device, writer)


def _print_next(demo: Demo, reader: str, device: str, writer: str) -> None:
    foldlog, data = shlex.join(demo.command), shlex.quote(demo.data)
    url = f"http://127.0.0.1:{read_settings().port}/v1/spaces/{SPACE}"
    curl = f"curl -H 'Authorization: Bearer {reader}'"
    record = next(op["id"] for op in demo.commits[-1].ops if op["op"] == "put")
    steps = {
        "Start the service again, in another terminal": f"{foldlog} serve --data {data}",
        "The last events": f"{curl} '{url}/events?after=2250'",
        "Some records": f"{curl} '{url}/records?collection={FILES}&limit=3'",
        "The records that changed since seq 2,250, with deleted ones": (
            f"{curl} '{url}/records?changed_after=2250'"
        ),
        "One record": f"{curl} '{url}/records/{FILES}/{record}'",
        "A change of your own": (
            f"curl -H 'Authorization: Bearer {writer}' '{url}/changesets' "
            "-H 'Content-Type: application/json' -d '"
            f'{{"device": "{device}", "sent_at": "{now()}", '
            f'"changesets": [{{"id": "{uuid.uuid4()}", "base": 0, '
            f'"made_at": "{now()}", '
            '"ops": [{"op": "put", "collection": "notes", "id": "1", '
            '"fields": {"text": "hello"}}]}]}\''
        ),
        "The state of the projections": f"{foldlog} status --data {data}",
    }
    out.print("\nWhat to type next:", highlight=False)
    for title, line in steps.items():
        out.print(f"\n  # {title}", highlight=False)
        click.echo(f"  {line}")


def _foldlog() -> list[str]:
    """Returns the command that started this program, as a list of strings without the arguments.

    The demo shows this command to the user, and runs other `foldlog` commands with it.
    """
    script = Path(sys.argv[0])
    if script.name == "foldlog" and script.exists():
        relative = os.path.relpath(script)
        return [relative if not relative.startswith("..") else str(script)]
    return [sys.executable, "-m", "foldlog"]
