"""The steps of the demo. Each step checks statements about the service, and prints whether they are
true.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from foldlog.domain.merge import Key, Record, fold
from foldlog.scripts.console import out, progress, spaced
from foldlog.scripts.server.process import environment

from .device import SPACE, Device, SignIn, bearer, now, post
from .history import Commit, tree_of

FILES = "files"
#: The history has at least this many commits whose tree git has told us.
MOMENTS_MIN = 20


@dataclass
class Demo:
    """Runs the steps of the demo: each step is a method. The attributes are the connection to the
    service, the commits to replay, and the results of the steps so far.
    """

    command: list[str]  #: how to run `foldlog`
    data: str
    http: httpx.Client
    sign_in: SignIn
    commits: list[Commit]
    seqs: dict[str, int] = field(default_factory=dict)  #: by changeset id
    failed: int = 0  #: number of claims that do not hold

    def check(self, is_true: bool, claim: str) -> None:
        """Prints the statement `claim`, with `ok` in front if it is true, or `NO` if it is
        false. Adds 1 to `failed` if the statement is false.
        """
        self.failed += not is_true
        mark = "[green]ok[/green]" if is_true else "[red]NO[/red]"
        out.print(f"  {mark}  {claim}", highlight=False, soft_wrap=True)

    def run(self, *arguments: str) -> bytes:
        """Runs a `foldlog` command on the demo's data and returns its output. Raises
        `CalledProcessError` if the command fails.
        """
        done = subprocess.run(
            [*self.command, *arguments, "--data", self.data],
            env=environment(),
            check=True,
            capture_output=True,
        )
        return done.stdout

    def new_token(self, *grant: str) -> str:
        """Runs `foldlog token new` with the given command line options, and returns the token."""
        return self.run("token", "new", *grant, "--name", "demo").decode().strip()

    def replay(self) -> None:
        """Pushes each commit as one changeset. The device that represents the author of the commit
        first pulls all earlier events, and then pushes the changeset.

        Checks that each changeset became one event, and that the events are in the order of the
        commits.
        """
        count = spaced(len(self.commits))
        out.print(f"\n1. {count} commits of a git repository, pushed by their authors' devices")
        devices: dict[str, Device] = {}
        repeats = pulled = requests = 0
        started = time.monotonic()
        with progress("replaying", len(self.commits)) as report:
            for number, commit in enumerate(self.commits, 1):
                device = devices.get(commit.device)
                if device is None:
                    device = Device(self.http, commit.device, self.sign_in.token(commit.device))
                    devices[commit.device] = device
                _, before = device.sync()
                verdicts, after = device.sync(commit.changeset(base=device.after))
                pulled += len(before) + len(after)
                requests += 2
                for verdict in verdicts:
                    assert verdict["verdict"] == "stored", verdict
                    self.seqs[verdict["id"]] = verdict["seq"]
                    repeats += verdict.get("duplicate", False)
                report(number)
        seconds = time.monotonic() - started
        out.print(
            f"     {spaced(len(devices))} devices, {spaced(requests)} syncs, {spaced(pulled)} "
            f"events pulled in {seconds:.1f} s; {spaced(repeats)} were there from an earlier run",
            highlight=False,
        )
        in_order = [self.seqs[commit.id] for commit in self.commits]
        self.check(
            in_order == list(range(1, len(self.commits) + 1)),
            f"each changeset is one event: seq 1 to {count}, in order, without a gap",
        )

    def push_again(self) -> None:
        """Pushes all changesets again, in batches of 100, and checks that the server
        recognises all of them as duplicates.
        """
        out.print("\n2. The same pushes again, as after lost answers, 100 changesets per request")
        by_device: defaultdict[str, list[Commit]] = defaultdict(list)
        for commit in self.commits:
            by_device[commit.device].append(commit)
        repeats = wrong = 0
        for device, own in by_device.items():
            for start in range(0, len(own), 100):
                batch = [commit.changeset(base=0) for commit in own[start : start + 100]]
                body = {"device": device, "sent_at": now(), "changesets": batch}
                token = self.sign_in.token(device)
                answer = post(self.http, f"/v1/spaces/{SPACE}/changesets", token, body)
                for verdict in answer["verdicts"]:
                    is_same = verdict["seq"] == self.seqs[verdict["id"]]
                    is_repeat = bool(verdict.get("duplicate")) and is_same
                    repeats += is_repeat
                    wrong += not is_repeat
        self.check(
            wrong == 0 and repeats == len(self.commits),
            f"{spaced(repeats)} answers repeat the first one, with duplicate: true; the log is "
            "unchanged",
        )

    def check_table(self) -> None:
        """Checks that the master table has the same files as git after the last commit."""
        out.print("\n3. The master table")
        headers = bearer(self.sign_in.token(str(uuid.uuid4())))
        fields: list[dict[str, Any]] = []
        query: dict[str, Any] = {"collection": FILES, "limit": 100, "at_least": len(self.commits)}
        while True:
            response = self.http.get(f"/v1/spaces/{SPACE}/records", params=query, headers=headers)
            answer = response.raise_for_status().json()
            fields += [record["fields"] for record in answer["records"]]
            if answer["cursor"] is None:
                break
            query["cursor"] = answer["cursor"]
        tree = tree_of(fields)
        self.check(
            tree == self.commits[-1].tree,
            f"{tree.files} live records = git's tree of the last commit ({tree.sha256[:16]}...)",
        )

    def check_new_device(self) -> None:
        """Pulls the whole log on a new device, computes the records there from the events, and
        checks that they are the same files as in git.
        """
        out.print("\n4. A new phone pulls the log from the start, and folds it itself")
        id = str(uuid.uuid4())
        _, events = Device(self.http, id, self.sign_in.token(id)).sync()
        records: dict[Key, Record] = {}
        for event in events:
            fold(records, event)
        tree = tree_of(r.fields for r in records.values() if r.is_live and r.collection == FILES)
        self.check(
            tree == self.commits[-1].tree,
            f"{spaced(len(events))} events make the same records there",
        )

    def check_moments(self) -> None:
        """Checks that the service can restore the records of the past. For each commit that has a
        `Tree`, computes the records right after the event of the commit with `foldlog replay
        --fold --to SEQ`, and compares these records with the `Tree`.
        """
        moments = [(self.seqs[c.id], c.tree) for c in self.commits if c.tree is not None]
        out.print(f"\n5. {len(moments)} moments of the past: foldlog replay --fold --to SEQ")
        equal = 0
        with progress("folding", len(moments)) as report:
            for number, (seq, tree) in enumerate(moments, 1):
                lines = self.run("replay", SPACE, "--fold", "--to", str(seq))
                records = [msgspec.json.decode(line) for line in lines.splitlines()]
                equal += tree == tree_of(
                    r["fields"] for r in records if not r["is_deleted"] and r["collection"] == FILES
                )
                report(number)
        self.check(
            equal == len(moments) >= MOMENTS_MIN,
            f"{equal} of {len(moments)} are equal to git's tree of that commit",
        )

    def check_rebuild(self) -> None:
        """Rebuilds the master table with `foldlog rebuild --verify`, and checks that it
        equals the live table.
        """
        out.print("\n6. foldlog rebuild --verify, while the service runs")
        try:
            line = self.run("rebuild", SPACE, "--verify").decode().strip()
        except subprocess.CalledProcessError as exc:
            self.check(False, exc.stderr.decode().strip())
        else:
            self.check("equal to the live table" in line, line)

    def check_access(self, admin: str, reader: str) -> None:
        """Sends allowed and forbidden requests with several tokens, and checks which ones
        the service refuses.
        """
        out.print("\n7. Every request needs a token with the right (foldlog token new)")
        own, device = "front-door", str(uuid.uuid4())
        grant = {"role": "device", "device": device, "name": "a phone"}
        phone = post(self.http, f"/v1/admin/spaces/{own}/tokens", admin, grant)["token"]
        push = {"device": device, "sent_at": now(), "changesets": []}
        other = {**push, "device": str(uuid.uuid4())}
        revoke = f"{own}/devices/{device}/revoke"

        def code(method: str, path: str, token: str | None, body: Any = None) -> str:
            headers = {} if token is None else bearer(token)
            answer = self.http.request(method, f"/v1/spaces/{path}", headers=headers, json=body)
            return "ok" if answer.is_success else str(answer.json()["code"])

        results = [
            ("no token reads", "unauthenticated", code("GET", f"{SPACE}/records", None)),
            ("a reader reads", "ok", code("GET", f"{SPACE}/records", reader)),
            ("a reader pushes", "forbidden", code("POST", f"{SPACE}/changesets", reader, push)),
            ("a device reads elsewhere", "unauthenticated", code("GET", f"{SPACE}/records", phone)),
            ("a device pushes", "ok", code("POST", f"{own}/changesets", phone, push)),
            ("it pushes as another", "forbidden", code("POST", f"{own}/changesets", phone, other)),
            ("an admin revokes it", "ok", code("POST", revoke, admin, {"reason": "lost"})),
            ("it pushes again", "device-revoked", code("POST", f"{own}/changesets", phone, push)),
        ]
        wrong = [f"{name}: {found}" for name, wanted, found in results if found != wanted]
        claim = "a reader only reads; a device writes only as itself, in its space, until revoked"
        self.check(not wrong, "; ".join([claim, *wrong]))
