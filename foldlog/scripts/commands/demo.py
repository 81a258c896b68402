"""`foldlog demo`: a real history through the real door, and everything checked at the end.

The history is that of a public git repository (pallets/flask): its 2,252 commits are changesets,
their 125 authors are devices, and files are records. git tells what the master table must hold
after some of them, so that a wrong answer cannot hide.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import jwt
import msgspec

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import Event
from foldlog.domain.merge import Key, Record, fold
from foldlog.infrastructure.embedded.folder import write_new
from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.console import EXIT_NO, err, out, progress, report_errors, spaced
from foldlog.scripts.demo.history import Commit, read_history, tree_of
from foldlog.scripts.server.process import environment, serving

SPACE, FILES = "flask", "files"
PAGE = 1_000


class SignIn:
    """What an app has already: whoever signs in there gets a token that says which device it is.

    Its keys are in a file that the service reads. Here they are one secret, made for this run.
    """

    AUDIENCE = "foldlog-demo"

    def __init__(self, folder: Path):
        self._secret = secrets.token_bytes(32)
        self.file = folder / "sign-in.json"
        secret = urlsafe_b64encode(self._secret).rstrip(b"=").decode()
        key = {"kty": "oct", "alg": "HS256", "kid": "demo", "k": secret}
        folder.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)
        write_new(self.file, json.dumps({"keys": [key]}), 0o600)

    @property
    def env(self) -> dict[str, str]:
        return {
            "FOLDLOG_ACCESS": "tokens",
            "FOLDLOG_JWT_KEYS": str(self.file),
            "FOLDLOG_JWT_AUDIENCE": self.AUDIENCE,
        }

    def token(self, device: str) -> str:
        claims = {
            "sub": device,
            "aud": self.AUDIENCE,
            "exp": time.time() + 3_600,
            "space": SPACE,
            "device": device,
            "scope": "read write",
        }
        return jwt.encode(claims, self._secret, "HS256", headers={"kid": "demo"})


class Device:
    """One replica as the protocol sees it: a cursor, and what it has not sent yet."""

    def __init__(self, http: httpx.Client, id: str, token: str):
        self._http = http
        self.id = id
        self.token = token
        self.after, self.mark = 0, ""

    def sync(self, *changesets: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Event]]:
        """One round trip that pushes and pulls, and more that pull until nothing is left."""
        verdicts: list[dict[str, Any]] = []
        events: list[Event] = []
        while True:
            body = {
                "device": self.id,
                "sent_at": datetime.now(UTC).isoformat(),
                "after": self.after,
                "mark": self.mark,
                "limit": PAGE,
                "changesets": changesets,
            }
            answer = post(self._http, f"/v1/spaces/{SPACE}/sync", self.token, body)
            verdicts += answer["verdicts"]
            events += [msgspec.convert(event, Event) for event in answer["events"]]
            self.after, self.mark = answer["through"], answer["mark"]
            if not answer["more"]:
                return verdicts, events
            changesets = ()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def post(http: httpx.Client, path: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **bearer(token)}
    response = http.post(path, content=msgspec.json.encode(body), headers=headers)
    if response.is_error:
        raise OperatorError(f"{path} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = msgspec.json.decode(response.content)
    return answer


class Checks:
    """What must be true, shown as it is found out."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, is_true: bool, claim: str) -> None:
        self.failed += not is_true
        mark = "[green]ok[/green]" if is_true else "[red]NO[/red]"
        out.print(f"  {mark}  {claim}", highlight=False, soft_wrap=True)


@click.command("demo")
@click.option("--data", metavar="DIR", default="demo-data", help="[default: demo-data]")
@click.option("--port", type=int, help="[default: a free one]")
@report_errors
def demo_command(data: str, port: int | None) -> None:
    """Start the service, replay a real history through it as 125 devices, check everything.

    Exit code 0 only if every check holds. Running it again on the same folder repeats every
    changeset, which changes nothing.
    """
    commits = read_history()
    checks = Checks()
    command = _foldlog()
    sign_in = SignIn(Path(data))
    with (
        err.status(f"starting the service on {data}/") as status,
        serving(command, data, port, sign_in.env) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        status.stop()
        out.print(f"The service runs on {data}/ and answers at {url}", highlight=False)
        seqs = _replay(http, sign_in, commits, checks)
        _repeat(http, sign_in, commits, seqs, checks)
        _check_table(http, sign_in, commits, checks)
        _check_new_device(http, sign_in, commits, checks)
        _check_moments(command, data, commits, seqs, checks)
        _check_rebuild(command, data, checks)
        reader = _token(command, data, "--role", "reader", "--space", SPACE)
        _check_access(
            http, _token(command, data, "--role", "admin", "--every-space"), reader, checks
        )
        device = str(uuid.uuid4())
        writer = _token(command, data, "--role", "device", "--device", device, "--space", SPACE)
    if checks.failed:
        err.print(f"[red]{checks.failed} checks failed[/red]")
        sys.exit(EXIT_NO)
    out.print(f"\nAll of that is true. The data is in {data}/ .", highlight=False)
    _print_next(command, data, reader, (device, writer), commits[-1])


def _replay(
    http: httpx.Client, sign_in: SignIn, commits: list[Commit], checks: Checks
) -> dict[str, int]:
    """Every device syncs, makes its change on what it has seen, and pushes it."""
    out.print(
        f"\n1. {spaced(len(commits))} commits of a git repository, pushed by their authors' devices"
    )
    devices: dict[str, Device] = {}
    seqs: dict[str, int] = {}
    repeats = pulled = requests = 0
    started = time.monotonic()
    with progress("replaying", len(commits)) as report:
        for number, commit in enumerate(commits, 1):
            device = devices.get(commit.device)
            if device is None:
                device = Device(http, commit.device, sign_in.token(commit.device))
                devices[commit.device] = device
            _, before = device.sync()
            verdicts, after = device.sync(commit.changeset(base=device.after))
            pulled += len(before) + len(after)
            requests += 2
            for verdict in verdicts:
                assert verdict["verdict"] == "stored", verdict
                seqs[verdict["id"]] = verdict["seq"]
                repeats += verdict.get("duplicate", False)
            report(number)
    seconds = time.monotonic() - started
    out.print(
        f"     {spaced(len(devices))} devices, {spaced(requests)} syncs, {spaced(pulled)} events "
        f"pulled in {seconds:.1f} s; {spaced(repeats)} were there from an earlier run",
        highlight=False,
    )
    in_order = [seqs[commit.id] for commit in commits]
    checks(
        in_order == list(range(1, len(commits) + 1)),
        f"each changeset is one event: seq 1 to {spaced(len(commits))}, in order, with no hole",
    )
    return seqs


def _repeat(
    http: httpx.Client,
    sign_in: SignIn,
    commits: list[Commit],
    seqs: dict[str, int],
    checks: Checks,
) -> None:
    out.print("\n2. The same again, as after lost answers, 100 changesets a request")
    by_device: dict[str, list[Commit]] = {}
    for commit in commits:
        by_device.setdefault(commit.device, []).append(commit)
    repeats = wrong = 0
    for device, own in by_device.items():
        for start in range(0, len(own), 100):
            batch = own[start : start + 100]
            answer = post(
                http,
                f"/v1/spaces/{SPACE}/changesets",
                sign_in.token(device),
                {
                    "device": device,
                    "sent_at": datetime.now(UTC).isoformat(),
                    "changesets": [commit.changeset(base=0) for commit in batch],
                },
            )
            for verdict in answer["verdicts"]:
                is_repeat = verdict.get("duplicate") and verdict["seq"] == seqs[verdict["id"]]
                repeats += bool(is_repeat)
                wrong += not is_repeat
    checks(
        wrong == 0 and repeats == len(commits),
        f"{spaced(repeats)} answered as the first time, with duplicate: true; nothing was added",
    )


def _check_table(
    http: httpx.Client, sign_in: SignIn, commits: list[Commit], checks: Checks
) -> None:
    out.print("\n3. The master table")
    headers = bearer(sign_in.token(str(uuid.uuid4())))
    fields: list[dict[str, Any]] = []
    query: dict[str, Any] = {"collection": FILES, "limit": 100, "at_least": len(commits)}
    while True:
        response = http.get(f"/v1/spaces/{SPACE}/records", params=query, headers=headers)
        answer = response.raise_for_status().json()
        fields += [record["fields"] for record in answer["records"]]
        if answer["cursor"] is None:
            break
        query["cursor"] = answer["cursor"]
    tree = tree_of(fields)
    checks(
        tree == commits[-1].tree,
        f"{tree.files} live records = git's tree of the last commit ({tree.sha256[:16]}...)",
    )


def _check_new_device(
    http: httpx.Client, sign_in: SignIn, commits: list[Commit], checks: Checks
) -> None:
    out.print("\n4. A new phone follows the log from the beginning, and folds it itself")
    id = str(uuid.uuid4())
    phone = Device(http, id, sign_in.token(id))
    _, events = phone.sync()
    records: dict[Key, Record] = {}
    for event in events:
        fold(records, event)
    tree = tree_of(r.fields for r in records.values() if r.is_live and r.collection == FILES)
    checks(tree == commits[-1].tree, f"{spaced(len(events))} events make the same records there")


def _check_moments(
    command: list[str], data: str, commits: list[Commit], seqs: dict[str, int], checks: Checks
) -> None:
    moments = [(seqs[commit.id], commit.tree) for commit in commits if commit.tree is not None]
    out.print(f"\n5. {len(moments)} moments of the past: foldlog replay --fold --to SEQ")
    equal = 0
    with progress("looking back", len(moments)) as report:
        for number, (seq, tree) in enumerate(moments, 1):
            lines = _run(command, "replay", SPACE, "--fold", "--to", str(seq), "--data", data)
            records = [msgspec.json.decode(line) for line in lines.splitlines()]
            equal += tree == tree_of(
                r["fields"] for r in records if not r["is_deleted"] and r["collection"] == FILES
            )
            report(number)
    checks(
        equal == len(moments) >= 20, f"{equal} of {len(moments)} are equal to git's tree of then"
    )


def _check_rebuild(command: list[str], data: str, checks: Checks) -> None:
    out.print("\n6. foldlog rebuild --verify, while the service goes on")
    try:
        line = _run(command, "rebuild", SPACE, "--verify", "--data", data).decode().strip()
    except subprocess.CalledProcessError as exc:
        checks(False, exc.stderr.decode().strip())
    else:
        checks("equal to the live table" in line, line)


def _token(command: list[str], data: str, *grant: str) -> str:
    return _run(command, "token", "new", *grant, "--name", "demo", "--data", data).decode().strip()


def _check_access(http: httpx.Client, admin: str, reader: str, checks: Checks) -> None:
    """Who may do what, in a space that the demo makes for it and in the one of above."""
    out.print("\n7. Nobody does anything without a token (foldlog token new)")
    own, device = "front-door", str(uuid.uuid4())
    grant = {"role": "device", "device": device, "name": "a phone"}
    phone = post(http, f"/v1/admin/spaces/{own}/tokens", admin, grant)["token"]
    push = {"device": device, "sent_at": datetime.now(UTC).isoformat(), "changesets": []}
    other = {**push, "device": str(uuid.uuid4())}

    def status(method: str, path: str, token: str | None, body: Any = None) -> str:
        headers = {} if token is None else bearer(token)
        answer = http.request(method, f"/v1/spaces/{path}", headers=headers, json=body)
        return "ok" if answer.is_success else str(answer.json()["code"])

    found = [
        status("GET", f"{SPACE}/records", None),
        status("GET", f"{SPACE}/records", reader),
        status("POST", f"{SPACE}/changesets", reader, push),
        status("GET", f"{SPACE}/records", phone),
        status("POST", f"{own}/changesets", phone, push),
        status("POST", f"{own}/changesets", phone, other),
        status("POST", f"{own}/devices/{device}/revoke", admin, {"reason": "lost"}),
        status("POST", f"{own}/changesets", phone, push),
    ]
    expected = ["unauthenticated", "ok", "forbidden", "unauthenticated", "ok", "forbidden", "ok"]
    checks(
        found == [*expected, "device-revoked"],
        "a reader only reads, a device writes as itself and in its space alone, and not once "
        "it is revoked",
    )


def _print_next(
    command: list[str], data: str, reader: str, writer: tuple[str, str], last: Commit
) -> None:
    device, its_token = writer
    foldlog = shlex.join(command)
    url = f"http://127.0.0.1:{read_settings().port}/v1/spaces/{SPACE}"
    curl = f"curl -H 'Authorization: Bearer {reader}'"
    record = next(op["id"] for op in last.ops if op["op"] == "put")
    steps = {
        "Start it again, in another terminal": f"{foldlog} serve --data {shlex.quote(data)}",
        "The last events": f"{curl} '{url}/events?after=2250'",
        "Some records": f"{curl} '{url}/records?collection={FILES}&limit=3'",
        "What changed since seq 2,250, collapsed, with tombstones": (
            f"{curl} '{url}/records?changed_after=2250'"
        ),
        "One record": f"{curl} '{url}/records/{FILES}/{record}'",
        "A change of your own": (
            f"curl -H 'Authorization: Bearer {its_token}' '{url}/changesets' "
            "-H 'Content-Type: application/json' -d '"
            f'{{"device": "{device}", "sent_at": "{datetime.now(UTC).isoformat()}", '
            f'"changesets": [{{"id": "{uuid.uuid4()}", "base": 0, '
            f'"made_at": "{datetime.now(UTC).isoformat()}", '
            '"ops": [{"op": "put", "collection": "notes", "id": "1", '
            '"fields": {"text": "hello"}}]}]}\''
        ),
        "How far everything is": f"{foldlog} status --data {shlex.quote(data)}",
    }
    out.print("\nWhat to type next:", highlight=False)
    for title, line in steps.items():
        out.print(f"\n  # {title}", highlight=False)
        click.echo(f"  {line}")


def _foldlog() -> list[str]:
    """This very command, as a person would type it."""
    script = Path(sys.argv[0])
    if script.name == "foldlog" and script.exists():
        relative = os.path.relpath(script)
        return [relative if not relative.startswith("..") else str(script)]
    return [sys.executable, "-m", "foldlog"]


def _run(command: list[str], *arguments: str) -> bytes:
    done = subprocess.run(
        [*command, *arguments], env=environment(), check=True, capture_output=True
    )
    return done.stdout
