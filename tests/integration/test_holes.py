"""A log with missing events is an alarm. No page, append or signature goes past the hole."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from threading import Thread

import httpx
import psycopg
import pytest
import structlog
from click.testing import CliRunner

from foldlog.domain.access import Grant, Role
from foldlog.domain.errors import LogIncomplete, StorageUnavailable
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.alarms import SuspectedHole
from foldlog.infrastructure.postgres.log.patrol import Patrol
from foldlog.infrastructure.postgres.status import checkpoints, incomplete_logs
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.signing.keys import make_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.scripts.main import cli
from foldlog.scripts.server.application import application
from tests.acceptance.live import SENT_AT, Connection, Stream
from tests.client.serving import serving
from tests.conftest import PostgresStores
from tests.helpers import A, B, a_token, changeset, new_id, push_of, put, until

EVENTS = 12
OF_S = "originator_id = 's' AND originator_version"

#: what goes wrong with the log of the space `s`, and the seqs that are then missing
DAMAGES = {
    "in the middle": (f"DELETE FROM events WHERE {OF_S} = 6", [(6, 6)]),
    "several": (f"DELETE FROM events WHERE {OF_S} IN (3, 4, 9)", [(3, 4), (9, 9)]),
    "at the start": (f"DELETE FROM events WHERE {OF_S} <= 2", [(1, 2)]),
    "at the end": (f"DELETE FROM events WHERE {OF_S} > 10", [(11, 12)]),
    "all": ("TRUNCATE events", [(1, 12)]),
    "head beyond": ("UPDATE spaces SET head = head + 2 WHERE space = 's'", [(13, 14)]),
    "head back": ("UPDATE spaces SET head = 8 WHERE space = 's'", []),
    "no head": ("UPDATE spaces SET head = 0, mark = '' WHERE space = 's'", []),
}
every_damage = pytest.mark.parametrize("kind", DAMAGES)


@contextmanager
def without_triggers(url: str):
    """A session that changes the log, as a failed disk or a wrong restore does."""
    with psycopg.connect(url, autocommit=True) as conn:
        for table in ("events", "spaces"):
            conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        yield conn
        for table in ("events", "spaces"):
            conn.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def damage(url: str, kind: str) -> list[tuple[int, int]]:
    """Damages the log of `s`, and returns the seqs that are then missing."""
    statement, missing = DAMAGES[kind]
    with without_triggers(url) as conn:
        conn.execute(statement.encode())
    return missing


def fill(stores, space: str = "s", count: int = EVENTS) -> None:
    for n in range(count):
        stores.push(space, push_of(changeset(put(str(n), "ab"[n % 2], n=n))))


@pytest.fixture
def urls(database_urls):
    return database_urls


@pytest.fixture
def filled(urls):
    """The stores of a database that the owner can damage. `s` has twelve events."""
    with Datastore(urls[0]) as datastore:
        stores = PostgresStores(datastore)
        fill(stores)
        stores.tails.clear()
        yield stores
        stores.log.close()


def pull_past_the_end(stores, limit: int, **query) -> None:
    """Pulls like a device that also asks again at the end."""
    after, is_over = 0, False
    while not is_over:
        page = stores.range_after("s", RangeQuery(after, limit, **query))
        assert page.through > after or not page.more, "`more` without progress"
        if not query:
            seqs = [json.loads(event)["seq"] for event in page.events]
            assert seqs == list(range(after + 1, page.through + 1))
        is_over = page.through == after
        after = page.through


@every_damage
def test_no_page_passes_over_a_hole(urls, filled, kind):
    """A filtered page counts what it has scanned. A page before the hole may still come."""
    missing = damage(urls[1], kind)
    for limit in (1, 4, 100):
        for query in ({}, {"collections": ("a",)}, {"collections": ("none",)}):
            with psycopg.connect(urls[1]) as conn:
                conn.execute("UPDATE spaces SET alarm = NULL")
            filled.tails.clear()
            with pytest.raises(LogIncomplete):
                pull_past_the_end(filled, limit, **query)
            [alarm] = incomplete_logs(filled.datastore)
            assert (alarm.space, alarm.holes.missing) == ("s", missing)


@every_damage
def test_no_append_builds_on_a_hole(urls, filled, kind):
    """The first append after the damage finds a wrong end; a reader finds the other holes.

    The store has appended before, so it decides on its cached state.
    """
    damage(urls[1], kind)
    if kind in ("in the middle", "several", "at the start"):
        with pytest.raises(LogIncomplete):
            pull_past_the_end(filled, 100)
    for stores in (filled, PostgresStores(filled.datastore)):
        with pytest.raises(LogIncomplete):
            stores.push("s", push_of(changeset(put("new"))))
    with pytest.raises(LogIncomplete):
        filled.register("s", B)
    assert filled.push("other", push_of(changeset())).head == 1, "other spaces go on"


@every_damage
def test_the_patrol_finds_a_hole_that_no_reader_meets(urls, filled, kind):
    fill(filled, "a", 3)
    fill(filled, "z", 3)
    patrol = Patrol(filled.datastore)
    for _ in range(5):
        patrol.step()
    assert incomplete_logs(filled.datastore) == []
    missing = damage(urls[1], kind)
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            patrol.step()
    found = {alarm.space: alarm.holes.missing for alarm in incomplete_logs(filled.datastore)}
    assert found["s"] == missing
    assert found.keys() == ({"a", "s", "z"} if kind == "all" else {"s"})
    told = [line for line in lines if line["event"] == "log_incomplete"]
    assert {line["space"] for line in told} == found.keys() and len(told) == len(found)


def test_the_patrol_counts_a_long_log_in_pieces(urls, filled, monkeypatch):
    monkeypatch.setattr("foldlog.infrastructure.postgres.log.patrol.EVENTS_PER_STEP", 5)
    damage(urls[1], "at the end")
    patrol = Patrol(filled.datastore)
    patrol.step()
    assert incomplete_logs(filled.datastore) == [], "the first five are there"
    patrol.step()
    patrol.step()
    assert len(incomplete_logs(filled.datastore)) == 1


@every_damage
def test_a_hole_is_not_signed(urls, filled, tmp_path, kind):
    """Also a log that is signed to its end: the patrol and the signer look at it again."""
    make_keys(tmp_path / "keys")
    filled.grow_trees()
    signer = CheckpointSigner(
        filled.proofs, keys=tmp_path / "keys", last=tmp_path / "last", origin="o"
    )
    assert signer.sign_all() == 1
    damage(urls[1], kind)
    Patrol(filled.datastore).step()
    with psycopg.connect(urls[1]) as conn:  # as after a new event, which the alarm prevents
        conn.execute("UPDATE checkpoints SET size = 11")
    assert signer.sign_all() == 0
    [line] = checkpoints(filled.datastore)
    assert line.alarm in ("log-incomplete", "log-shrunk")


def test_the_signer_counts_what_it_signs(urls, filled, tmp_path):
    """The tree has the leaf of an event that the log has lost since."""
    make_keys(tmp_path / "keys")
    filled.grow_trees()
    damage(urls[1], "in the middle")
    signer = CheckpointSigner(
        filled.proofs, keys=tmp_path / "keys", last=tmp_path / "last", origin="o"
    )
    assert signer.sign_all() == 0
    [line] = checkpoints(filled.datastore)
    assert line.alarm == "log-incomplete" and "seq 6" in line.alarm_detail


def test_an_outdated_look_raises_no_alarm(filled):
    """A suspicion is confirmed by a fresh look, so a reader with an old snapshot never stops a
    space."""
    filled.alarms.confirm("s", SuspectedHole(0, 12))
    with pytest.raises(StorageUnavailable):
        filled.alarms.confirm_or_retry("s", SuspectedHole(11, 12))
    assert incomplete_logs(filled.datastore) == []
    assert filled.push("s", push_of(changeset())).head == 13


def test_entries_end_before_a_hole(urls, filled):
    """An export, a replay or a bundle of leaves never passes over a hole."""
    damage(urls[1], "in the middle")
    with pytest.raises(LogIncomplete):
        list(filled.entries("s", through=12))
    assert [entry.seq for entry in filled.entries("s", through=5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["in the middle", "at the start", "at the end", "all"])
def test_verify_ends_the_alarm_when_the_events_are_back(urls, filled, kind):
    """The rows are restored from a copy. An alarm without a hole waits for `foldlog verify`."""
    filled.project()
    filled.grow_trees()
    with psycopg.connect(urls[1]) as conn:
        conn.execute("CREATE TABLE kept AS SELECT * FROM events")
    damage(urls[1], kind)
    with pytest.raises(LogIncomplete):
        pull_past_the_end(filled, 100)
    options = ["--database-url", urls[0]]
    assert CliRunner().invoke(cli, ["verify", "s", *options]).exit_code != 0
    assert len(incomplete_logs(filled.datastore)) == 1
    with without_triggers(urls[1]) as conn:
        conn.execute("INSERT INTO events SELECT * FROM kept ON CONFLICT DO NOTHING")
    shown = CliRunner().invoke(cli, ["status", "s", *options])
    assert shown.exit_code == 1 and "run foldlog verify" in shown.output
    with pytest.raises(LogIncomplete):
        filled.push("s", push_of(changeset()))
    verified = CliRunner().invoke(cli, ["verify", "s", *options])
    assert verified.exit_code == 0, verified.output
    assert "log-incomplete is over" in verified.output
    assert filled.push("s", push_of(changeset())).head == 13
    assert CliRunner().invoke(cli, ["status", "s", *options]).exit_code == 0


@every_damage
def test_a_fork_ends_the_alarm(urls, filled, kind):
    """The log is whole again, with a new id, and verifies. What is lost is told event by event."""
    filled.project()
    filled.grow_trees()
    log = filled.range_after("s", RangeQuery(0, 1)).log
    missing = damage(urls[1], kind)
    options = ["--database-url", urls[0]]
    Patrol(filled.datastore).step()
    assert len(incomplete_logs(filled.datastore)) == 1
    forked = CliRunner().invoke(cli, ["fork", "s", "--yes", *options])
    assert forked.exit_code == 0, forked.output
    stores = PostgresStores(filled.datastore)
    pull_past_the_end(stores, 100)
    page = stores.range_after("s", RangeQuery(0, 100))
    assert page.log != log
    head = {"at the end": 10, "all": 0}.get(kind, 12)
    events = [json.loads(event) for event in page.events]
    lost = [event["seq"] for event in events if event["kind"] == "event-lost"]
    assert page.head == head
    assert lost == [seq for first, last in missing for seq in range(first, last + 1) if seq <= head]
    verified = CliRunner().invoke(cli, ["verify", "s", *options])
    assert verified.exit_code == 0, verified.output
    assert stores.push("s", push_of(changeset())).head == head + 1
    assert incomplete_logs(stores.datastore) == []


# Through the running service


class Service:
    """Two workers with their own caches, and tokens."""

    def __init__(self, urls: tuple[str, str], stack: ExitStack, data):
        settings = read_settings({"FOLDLOG_ACCESS": "tokens", "FOLDLOG_DATA": str(data)})
        self.workers = [stack.enter_context(application(urls[0], settings)) for _ in range(2)]
        serve = [stack.enter_context(serving(worker)) for worker in self.workers]
        self.ports = [int(url.rpartition(":")[2]) for url in serve]
        self.here, self.there = (
            stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))
            for port in self.ports
        )

    def push(self, client: httpx.Client, space: str = "s") -> httpx.Response:
        body = {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put(new_id()))]}
        return client.post(f"/v1/spaces/{space}/changesets", json=body)

    def head(self, client: httpx.Client) -> int:
        return client.get("/v1/spaces/s/events").json()["head"]


@pytest.fixture
def service(urls, tmp_path):
    with Datastore(urls[0]) as datastore, ExitStack() as stack:
        stores = PostgresStores(datastore)
        service = Service(urls, stack, tmp_path)
        text, digest = a_token()
        for space in ("s", "other"):
            grant = Grant(role=Role.DEVICE, device=A)
            stores.registry.grant(space, new_id(), digest, grant, None)
        headers = {"Authorization": f"Bearer {text}"}
        monitor, digest = a_token()
        stores.registry.grant("", new_id(), digest, Grant(role=Role.READER), None)
        service.monitor = {"Authorization": f"Bearer {monitor}"}
        service.here.headers = service.there.headers = headers
        service.headers = headers
        auditor, digest = a_token()
        stores.registry.grant("", new_id(), digest, Grant(role=Role.AUDITOR), None)
        service.auditor = {"Authorization": f"Bearer {auditor}"}
        service.stores = stores
        for _ in range(EVENTS):
            assert service.push(service.here).status_code == 200
        assert service.push(service.here, "other").status_code == 200
        yield service
        Connection.close_all()
        service.here.close()
        service.there.close()


def test_the_service_tells_of_a_hole_and_other_spaces_go_on(urls, service):
    """Both workers refuse writes at once, because the alarm is in the database."""
    here, there = service.here, service.there
    assert len(there.get("/v1/spaces/s/events").json()["events"]) > EVENTS
    damage(urls[1], "in the middle")
    answer = there.get("/v1/spaces/s/events?limit=10")
    assert (answer.status_code, answer.json()["code"]) == (503, "log-incomplete")
    assert answer.headers["retry-after"] == "60" and "seq 6" in answer.json()["detail"]
    for client in (here, there):
        refused = service.push(client)
        assert (refused.status_code, refused.json()["code"]) == (503, "log-incomplete")
        assert service.push(client, "other").status_code == 200
        body = {"device": A, "sent_at": SENT_AT, "after": 0}
        assert client.post("/v1/spaces/s/sync", json=body).json()["code"] == "log-incomplete"
        assert client.get("/v1/spaces/s/events?wait=5&limit=9").json()["code"] == "log-incomplete"
        ready = client.get("/readyz")
        assert ready.status_code == 200 and ready.json()["alarms"] == {"log-incomplete": 1}
        assert (
            'foldlog_alarms{alarm="log-incomplete"} 1.0'
            in client.get("/metrics", headers=service.monitor).text
        )
    stream = Stream(service.ports[1], "/v1/spaces/s/events/stream?after=0", headers=service.headers)
    assert stream.head.status == 503


def test_a_stream_ends_with_a_problem_at_a_hole(urls, service):
    """A stream that waits at the end of the log gets no event after a hole."""
    head = service.head(service.there)
    path = f"/v1/spaces/s/events/stream?after={head - 1}"
    stream = Stream(service.ports[1], path, headers=service.headers)
    assert stream.next().seqs == [head]
    with without_triggers(urls[1]) as conn:
        conn.execute("UPDATE spaces SET head = head + 2 WHERE space = 's'")
    problem = stream.next()
    assert (problem.kind, json.loads(problem.data)["code"]) == ("problem", "log-incomplete")


def test_a_worker_with_a_cache_of_before_a_restore_serves_the_restored_log(urls, service):
    """A database restored to seq 4 goes on at another worker. No page mixes the two histories."""
    here, there = service.here, service.there
    page = there.get("/v1/spaces/s/events").json()
    assert page["through"] == service.head(here)
    mark = there.get("/v1/spaces/s/events?limit=4").json()["mark"]
    with without_triggers(urls[1]) as conn:
        conn.execute("DELETE FROM events WHERE originator_id = 's' AND originator_version > 4")
        conn.execute("UPDATE spaces SET head = 4, mark = %s WHERE space = 's'", [mark])
    for _ in range(EVENTS):
        until(lambda: service.push(here).status_code == 200)

    def restored() -> bool:
        pages = [client.get("/v1/spaces/s/events").json() for client in (here, there)]
        return pages[0]["events"] == pages[1]["events"]

    until(restored)
    assert there.get("/v1/spaces/s/events").json()["events"][4] != page["events"][4]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_export_that_meets_a_hole_never_looks_whole(urls, service, encoding, monkeypatch):
    """The status 200 was sent. The last line has the problem, and the answer breaks off."""
    monkeypatch.setattr("foldlog.api.operations.proofs.PIECE_BYTES", 1)
    monkeypatch.setattr("foldlog.infrastructure.postgres.log.ranges.ENTRIES_BATCH", 3)
    url = f"{service.here.base_url}/v1/spaces/s/export"
    headers = service.auditor | {"accept-encoding": encoding}
    assert len(httpx.get(url, headers=headers).text.splitlines()) == 1 + service.head(service.here)
    damage(urls[1], "in the middle")
    body = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("GET", url, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        for piece in answer.iter_bytes():
            body += piece
    *_, last = body.splitlines()
    assert json.loads(last)["problem"]["code"] == "log-incomplete"


def test_commands_see_that_an_export_is_cut(urls, service, tmp_path, monkeypatch):
    """`foldlog export` leaves no file of that name, and `foldlog verify URL` names the reason."""
    damage(urls[1], "in the middle")
    for name in ("s.jsonl", "s.jsonl.gz", "s.tar"):
        file = tmp_path / name
        archive = ["--archive"] if name.endswith("tar") else []
        words = ["export", "s", "-o", str(file), "--database-url", urls[0], *archive]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 3 and "log-incomplete" in result.output
        assert not file.exists()
    token = service.auditor["Authorization"].removeprefix("Bearer ")
    words = ["verify", "s", "--url", str(service.here.base_url), "--token", token]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code != 0 and "log-incomplete" in result.output


#: the requests of a reader, each of which must not take a damaged log for a whole one
READS = {
    "small pages": "events?after=0&limit=5",
    "filtered at the end": "events?after={head}&collections=none",
    "waiting": "events?after={head}&wait=1",
}


@pytest.mark.slow
@every_damage
@pytest.mark.parametrize("read", READS)
def test_no_worker_serves_a_damaged_log_as_whole(urls, service, kind, read):
    """Whatever a worker has in its cache: a device reads on from its cursor until the service tells
    of the hole, and never gets a page without progress, or a reason to heal."""
    head = service.head(service.here)
    for client in (service.here, service.there):
        client.get("/v1/spaces/s/events?after=0")
    damage(urls[1], kind)
    told = set()
    for client in (service.here, service.there):
        path = READS[read].format(head=head)

        def answer(client=client, path=path) -> bool:
            found = client.get(f"/v1/spaces/s/{path}")
            if found.status_code == 503:
                told.add(found.json()["code"])
                return True
            assert found.status_code == 200, found.text
            page = found.json()
            assert page["through"] > 0 or not page["more"]
            Patrol(service.stores.datastore).step()
            return service.push(client).status_code == 503

        until(answer)
        assert service.push(client).json()["code"] == "log-incomplete"
        if kind != "all":
            assert service.push(client, "other").status_code == 200
    assert told <= {"log-incomplete"}
    shown = CliRunner().invoke(cli, ["status", "s", "--database-url", urls[0]])
    assert shown.exit_code == 1 and "log-incomplete: s: " in shown.output.replace("\n", " ")


@pytest.mark.slow
@every_damage
def test_a_waiting_reader_and_an_open_stream_get_no_event_after_a_hole(urls, service, kind):
    """Both wait at the end of the log while it is damaged, and then an append is tried."""
    head = service.head(service.there)
    path = f"/v1/spaces/s/events/stream?after={head - 1}"
    stream = Stream(service.ports[1], path, headers=service.headers)
    assert stream.next().seqs == [head]
    waited = []
    thread = Thread(
        target=lambda: waited.append(
            service.there.get(f"/v1/spaces/s/events?after={head}&wait=20").json()
        )
    )
    thread.start()
    until(lambda: len(service.workers[1].resources.log_watches._spaces) > 0)
    damage(urls[1], kind)
    Patrol(service.stores.datastore).step()
    assert service.push(service.here).status_code == 503
    with without_triggers(urls[1]) as conn:  # as a process of another version would append
        conn.execute("UPDATE spaces SET head = head + 1 WHERE space = 's'")
    problem = stream.next()
    assert (problem.kind, json.loads(problem.data)["code"]) == ("problem", "log-incomplete")
    thread.join(20)
    assert waited[0].get("code") == "log-incomplete" or waited[0]["events"] == []


@pytest.mark.slow
def test_a_device_that_is_ahead_of_a_restored_log_heals(urls, service):
    """A whole log that is older is no hole: the device is told `log-behind`. A log whose head alone
    was moved back is one."""
    head = service.head(service.here)
    with without_triggers(urls[1]) as conn:
        conn.execute("UPDATE spaces SET head = 4 WHERE space = 's'")
    for path in (f"events?after={head}", f"events?after={head}&collections=none"):
        until(lambda path=path: service.here.get(f"/v1/spaces/s/{path}").status_code != 200)
        found = service.here.get(f"/v1/spaces/s/{path}")
        assert (found.status_code, found.json()["code"]) == (503, "log-incomplete")
    with without_triggers(urls[1]) as conn:
        conn.execute("DELETE FROM events WHERE originator_id = 's' AND originator_version > 4")
        conn.execute("UPDATE spaces SET alarm = NULL")
    found = service.here.get(f"/v1/spaces/s/events?after={head}")
    assert (found.status_code, found.json()["code"]) == (409, "log-behind")
