"""One folder of last checkpoints signs the logs of a database, and a takeover compares first.

Each service here has its own folder, and all share one key. `Signed` collects each checkpoint that
was ever published, and finds two trees of one size: a signed fork.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
import structlog
from click.testing import CliRunner

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.domain.notes import Checkpoint, Note, Signer, Verifier, public_key_of
from foldlog.domain.witness import AddCheckpoint
from foldlog.infrastructure.embedded.binaries import find_binaries
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.proofs import signers as signers_module
from foldlog.infrastructure.postgres.proofs.signers import Signers, stored_signers
from foldlog.infrastructure.postgres.status import alarms, checkpoints, gauges
from foldlog.infrastructure.signing import signer as signer_module
from foldlog.infrastructure.signing.folders import FILE, identify_folder, read_folder
from foldlog.infrastructure.signing.keys import make_keys, read_keys, rotate_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.infrastructure.signing.witness import Witness
from foldlog.scripts.main import cli
from tests.conftest import PostgresStores, create_database
from tests.helpers import changeset, push_of, put

ORIGIN = "foldlog.local"


class Signed:
    """All checkpoints that were published, of all services and databases."""

    def __init__(self):
        self.roots: dict[tuple[str, int], bytes] = {}

    def add(self, space: str, log: str, note: Note) -> None:
        checkpoint = Checkpoint.parse(note.text)
        key = (checkpoint.origin, checkpoint.size)
        assert self.roots.setdefault(key, checkpoint.root) == checkpoint.root, "a signed fork"


class Service:
    """A service with its own data folder, on any database."""

    def __init__(self, data: Path, keys: Path, signed: Signed):
        self.data, self.keys, self.signed = data, keys, signed
        self.last = data / "checkpoints"
        data.mkdir()

    def start(self, stores: PostgresStores) -> Service:
        self.stores = stores
        self.signer = CheckpointSigner(
            stores.proofs,
            keys=self.keys,
            last=self.last,
            origin=ORIGIN,
            on_signed=self.signed.add,
        )
        return self

    def sign(self) -> int:
        self.stores.grow_trees()
        return self.signer.sign_all()

    def run(self, *words: str, code: int = 0) -> str:
        """Runs a command with the folders of this service."""
        options = ["--data", str(self.data), "--database-url", self.stores.datastore.url]
        env = {"FOLDLOG_KEYS": str(self.keys), "FOLDLOG_ORIGIN": ORIGIN}
        result = CliRunner().invoke(cli, [*words, *options], env=env)
        assert result.exit_code == code, result.output
        return result.output

    def take_over(self, other: Service | None = None, code: int = 0) -> str:
        how = ["--lost", "the disk died"] if other is None else ["--from", str(other.last)]
        return self.run("keys", "takeover", *how, code=code)


class Databases:
    """Makes databases, and restores dumps into new ones."""

    def __init__(self, cluster, tmp_path: Path):
        self._cluster, self._folder, self._open = cluster, tmp_path, []

    def new(self, template: str = "foldlog") -> PostgresStores:
        datastore = Datastore(create_database(self._cluster, template=template)[0])
        self._open.append(datastore)
        return PostgresStores(datastore)

    def dump(self, stores: PostgresStores) -> Path:
        file = self._folder / f"{len(self._open)}-{time.monotonic_ns()}.dump"
        self._run("pg_dump", "--format=custom", f"--file={file}", stores.datastore.url)
        return file

    def restore(self, dump: Path) -> PostgresStores:
        stores = self.new("template0")
        self._run("pg_restore", "--no-acl", f"--dbname={stores.datastore.url}", str(dump))
        return stores

    def _run(self, program: str, *words: str) -> None:
        subprocess.run([find_binaries() / program, *words], check=True, capture_output=True)

    def close(self) -> None:
        for datastore in self._open:
            datastore.close()


@pytest.fixture
def databases(cluster, tmp_path):
    databases = Databases(cluster, tmp_path)
    yield databases
    databases.close()


@pytest.fixture
def services(tmp_path, monkeypatch):
    """Makes services that share one key."""
    monkeypatch.setattr(signer_module, "RETRY_SECONDS", 0)
    signed = Signed()
    make_keys(tmp_path / "keys")
    return lambda name, keys="keys": Service(tmp_path / name, tmp_path / keys, signed)


def push(stores: PostgresStores, count: int, space: str = "s") -> None:
    stores.push(space, push_of(*[changeset(put(str(n), n=n)) for n in range(count)]))


def alarm_of(stores: PostgresStores, space: str = "s") -> str | None:
    found = [line.alarm for line in checkpoints(stores.datastore, space)]
    return found[0] if found else None


def refused(stores: PostgresStores) -> set[str]:
    return {s.folder for s in stored_signers(stores.datastore) if s.refused_why is not None}


@pytest.mark.parametrize("takes_over", [False, True])
def test_a_restored_dump_is_signed_by_no_second_folder(databases, services, takes_over):
    """One service stops, a dump is taken, the other one signs on, and the dump is restored. The
    first one must not sign other events at a size that was signed before."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 10)
    assert one.sign() == 1
    dump = databases.dump(stores)
    push(stores, 5)
    if takes_over:
        other.take_over(one)
    assert other.sign() == int(takes_over)

    restored = databases.restore(dump)
    for service in (one, other):
        service.start(restored)
    for count in (0, 5, 4):
        if count:
            push(restored, count)
        for service in (one, other, one):
            service.sign()  # `Signed` finds a fork
    assert "another-folder" in one.run("status", code=1)
    if not takes_over:
        assert Checkpoint.of(stores.proofs.checkpoint("s")).size == 10, "only one was allowed to"
        return
    assert alarm_of(restored) == "log-forked"
    assert refused(restored) == {
        identify_folder(one.last).folder,
        identify_folder(other.last).folder,
    }
    assert "log-forked" in other.take_over(one, code=3)
    other.run("fork", "s", "--yes")
    other.take_over(one)
    assert other.sign() == 1 and alarm_of(restored) is None
    assert one.sign() == 0


@pytest.mark.slow
def test_the_folder_that_knows_more_stops_the_other_one(databases, services):
    """The other folder was called lost, so it has no mark, and the dump names it. The alarm of the
    one that signed on stands, and stops the one that the database names."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 10)
    one.sign()
    dump = databases.dump(stores)
    push(stores, 5)
    other.take_over()
    assert other.sign() == 1

    restored = databases.restore(dump)
    one.start(restored), other.start(restored)
    assert other.sign() == 0
    [line] = checkpoints(restored.datastore)
    assert (line.alarm, line.alarm_raised_by) == ("log-shrunk", identify_folder(other.last).folder)
    push(restored, 5)
    for _ in range(3):
        assert one.sign() == 0
        assert alarm_of(restored) in ("log-shrunk", "log-forked")
        other.sign()
    assert f"folder {line.alarm_raised_by}" in one.run("status", code=1).replace("\n", "")


def test_an_alarm_ends_by_its_own_folder_only(databases, services):
    """Another folder neither replaces nor ends it, and signs nothing meanwhile."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    shutil.copytree(one.last, other.last)
    (other.last / FILE).unlink()
    theirs = identify_folder(other.last).folder
    stores.proofs.alarm("s", "log-forked", "why", theirs)
    push(stores, 3)
    assert one.sign() == 0
    stores.proofs.alarm("s", "log-shrunk", "mine", identify_folder(one.last).folder)
    assert alarm_of(stores) == "log-forked"
    assert other.sign() == 0, "it has nothing against the log any more, so its alarm ends"
    assert alarm_of(stores) is None
    assert one.sign() == 1
    assert refused(stores) == {theirs}


def test_the_refusal_is_visible_and_ends_by_a_takeover(databases, services):
    """In the log, in `status`, in `/readyz` and in the metrics. The takeover leaves a trace."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    push(stores, 1)
    with structlog.testing.capture_logs() as lines:
        assert [other.sign() for _ in range(3)] == [0, 0, 0]
    mine, theirs = identify_folder(other.last).folder, identify_folder(one.last).folder
    [line] = [line for line in lines if line["event"] == "signer_refused"]
    assert line["folder"] == mine and theirs in line["why"] and "keys takeover" in line["why"]
    assert alarms(stores.datastore) == {"another-folder": 1}
    by_label = {
        gauge.labels.get("alarm"): gauge.value for gauge in gauges(stores.datastore) if gauge.labels
    }
    assert by_label["another-folder"] == 1
    assert mine in one.run("status", code=1)
    shown = [json.loads(line) for line in one.run("status", "--json", code=1).splitlines()]
    assert [s["signer"]["signs"] for s in shown if "signer" in s] == [True, False]
    assert one.sign() == 1, "the refused service holds up nobody"

    told = other.take_over(one)
    new = identify_folder(other.last).folder
    assert new in told and new not in (mine, theirs)
    assert alarms(stores.datastore) == {}
    assert other.run("status")
    [before] = [s for s in stored_signers(stores.datastore) if s.replaced_by == new]
    assert before.folder == theirs and str(one.last) in before.replaced_why
    mark = read_folder(one.last)
    assert mark.taken_over_by == new
    push(stores, 1)
    assert (one.sign(), other.sign(), refused(stores)) == (0, 1, {theirs})


@pytest.mark.slow
def test_three_services_sign_one_after_another(databases, services):
    stores = databases.new()
    all_of_them = [services(name).start(stores) for name in ("one", "two", "three")]
    signs = all_of_them[0]
    for next_one in [*all_of_them[1:], all_of_them[0]]:
        push(stores, 2)
        assert [s.sign() for s in all_of_them] == [int(s is signs) for s in all_of_them]
        next_one.take_over(signs)
        signs = next_one
    push(stores, 2)
    assert [s.sign() for s in all_of_them] == [1, 0, 0], "it has taken back"
    stranger = services("four").start(stores)
    assert "give the one that signs" in stranger.take_over(all_of_them[1], code=3)


def test_a_copy_of_the_folder_is_behind(databases, services):
    """Two machines with the same folder id. The copy lacks what the original has signed since."""
    stores = databases.new()
    one, copy = services("one").start(stores), services("copy").start(stores)
    push(stores, 3)
    one.sign()
    shutil.copytree(one.last, copy.last)
    push(stores, 3)
    assert one.sign() == 1
    push(stores, 3)
    assert copy.sign() == 0
    assert alarm_of(stores) == "folder-behind"
    assert one.sign() == 1, "the same id has raised it, and is not behind"
    copy.take_over(one)
    push(stores, 1)
    assert (one.sign(), copy.sign()) == (0, 1)


@pytest.mark.parametrize("age", ["lost", "older"])
def test_a_folder_that_forgot_needs_a_decision(databases, services, age, tmp_path):
    """The folder is empty, or a backup was put back. It may have signed what it forgot."""
    stores = databases.new()
    one = services("one").start(stores)
    push(stores, 3)
    one.sign()
    shutil.copytree(one.last, tmp_path / "backup")
    push(stores, 3)
    one.sign()
    shutil.rmtree(one.last)
    if age == "older":
        shutil.copytree(tmp_path / "backup", one.last)
    push(stores, 3)
    assert (one.sign(), one.start(stores).sign()) == (0, 0)
    shown = one.run("status", code=1)
    assert ("another-folder" if age == "lost" else "folder-behind") in shown
    one.take_over()
    assert one.sign() == 1 and one.run("status")
    reasons = [s.replaced_why for s in stored_signers(stores.datastore)]
    assert "the disk died" in reasons
    shutil.rmtree(one.last)
    shutil.copytree(tmp_path / "backup", one.last)
    push(stores, 1)
    assert one.sign() == 0 and "another-folder" in one.run("status", code=1)


@pytest.mark.slow
def test_a_dump_in_a_new_database_is_not_signed_beside_the_old_one(databases, services):
    """The old service goes on. The copy of its database names its folder."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other")
    push(stores, 3)
    one.sign()
    restored = databases.restore(databases.dump(stores))
    other.start(restored)
    for database in (stores, restored):
        push(database, 2)
    assert (one.sign(), other.sign()) == (1, 0)
    assert "log-shrunk" not in other.run("status", code=1)
    assert "log-forked" in other.take_over(one, code=3), "the folder has signed other events"


def test_an_unsigned_log_in_a_dump_is_signed_by_one_folder(databases, services):
    """The dump has a log without a checkpoint, which another service signs first."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    push(stores, 3, space="new")
    dump = databases.dump(stores)
    push(stores, 2, space="new")
    assert other.sign() == 0
    other.take_over(one)
    assert other.sign() == 1
    restored = databases.restore(dump)
    push(restored, 2, space="new")
    for service in (one, other):
        assert service.start(restored).sign() == 0
    assert alarm_of(restored, "new") == "log-forked"


@pytest.mark.slow
def test_spaces_that_are_made_and_renamed(databases, services):
    """A new log has a new id. A log under another name has another origin, so it is another log."""
    stores = databases.new()
    one = services("one").start(stores)
    push(stores, 3)
    one.sign()
    dump = databases.dump(stores)
    push(stores, 3, space="new")
    one.sign()
    restored = databases.restore(dump)
    one.start(restored)
    push(restored, 4, space="new")
    assert one.sign() == 1, "the name is the same, the log is another one"
    with psycopg.connect(restored.datastore.url) as conn:
        for table in ("spaces", "events"):
            conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        for table in ("spaces", "events", "projections", "tiles", "checkpoints"):
            column = "originator_id" if table == "events" else "space"
            conn.execute(f"UPDATE {table} SET {column} = 'moved' WHERE {column} = 's'".encode())
    renamed = PostgresStores(restored.datastore)
    one.start(renamed)
    push(renamed, 2, space="moved")
    assert one.sign() == 1 and alarm_of(renamed, "moved") is None


@pytest.mark.slow
def test_a_key_that_was_rotated_between(databases, services):
    """The folder's last checkpoint has a signature of the old key, which stays listed."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    ring = rotate_keys(one.keys)
    push(stores, 1)
    assert one.sign() == 1
    assert [s.key for s in stored_signers(stores.datastore)] == [ring.log[-1].public]
    ring = rotate_keys(one.keys)
    other.take_over(one)
    push(stores, 1)
    assert (one.sign(), other.sign()) == (0, 1)


@pytest.mark.parametrize("shares_folder", [False, True])
def test_two_keys_are_told(databases, services, tmp_path, shares_folder):
    """A service with another key signs nothing, and `status` names both keys."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other", "other-keys").start(stores)
    make_keys(tmp_path / "other-keys")
    push(stores, 3)
    one.sign()
    push(stores, 3)
    if shares_folder:
        other.last = one.last
        other.start(stores)
    with structlog.testing.capture_logs() as lines:
        assert [other.sign() for _ in range(2)] == [0, 0]
    [line] = [line for line in lines if line["event"] == "signer_refused"]
    assert "key" in line["why"]
    assert "two log keys are in use" in one.run("status", code=1).replace("\n", " ")
    assert one.sign() == 1
    assert len({s.key for s in stored_signers(stores.datastore)}) == 2
    if not shares_folder:
        assert "no known key" in other.take_over(one, code=3).replace("\n", " ")
        assert "not compared" in other.take_over()
        push(stores, 1)
        assert other.sign() == 1, "the old key is lost"
        assert one.sign() == 0


@pytest.mark.slow
def test_two_services_that_start_at_once(databases, services, monkeypatch):
    """On a new database one of them begins, and goes on alone."""
    monkeypatch.setattr(signer_module, "PAUSE_SECONDS", 0.01)
    stores = databases.new()
    both = [services("one").start(stores), services("other").start(stores)]
    closing = Event()
    threads = [Thread(target=service.signer.run, args=(closing,)) for service in both]
    for thread in threads:
        thread.start()
    try:
        for size in (2, 4, 6):
            push(stores, 2)
            stores.grow_trees()
            until = time.monotonic() + 20
            while time.monotonic() < until and [
                line.size for line in checkpoints(stores.datastore)
            ] != [size]:
                time.sleep(0.01)
            assert [line.size for line in checkpoints(stores.datastore)] == [size]
        while time.monotonic() < until and not refused(stores):
            time.sleep(0.01)
    finally:
        closing.set()
        for thread in threads:
            thread.join()
    assert sorted(len(list(service.last.glob("s/*"))) for service in both) == [0, 1]
    assert len(refused(stores)) == 1


def test_processes_of_one_service_share_the_id(tmp_path):
    """All make the folder and its id at once."""
    found = []
    threads = [
        Thread(target=lambda: found.append(identify_folder(tmp_path / "a" / "b").folder))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [FILE]


def as_before(stores: PostgresStores, *services: Service) -> None:
    """An installation of the version before: no folder has an id."""
    with psycopg.connect(stores.datastore.url) as conn:
        conn.execute("DELETE FROM signers")
    for service in services:
        (service.last / FILE).unlink(missing_ok=True)


def test_an_installation_of_before_goes_on(databases, services):
    """The folder whose checkpoints are those of the database gets an id, and signs."""
    stores = databases.new()
    one = services("one").start(stores)
    push(stores, 3)
    push(stores, 3, space="other")
    one.sign()
    as_before(stores, one)
    push(stores, 2)
    assert one.start(stores).sign() == 1
    assert one.run("status")


def test_of_two_installations_of_before_the_later_one_goes_on(databases, services):
    """The other one, and one that has never signed, are refused, also if they start first."""
    stores = databases.new()
    old, one, empty = (services(name).start(stores) for name in ("old", "one", "empty"))
    push(stores, 3)
    one.sign()
    shutil.copytree(one.last, old.last)
    push(stores, 3)
    one.sign()
    as_before(stores, one, old)
    push(stores, 2)
    assert [s.start(stores).sign() for s in (old, empty, one, old, empty)] == [0, 0, 1, 0, 0]
    assert len(refused(stores)) == 2


def test_a_damaged_id_is_an_alarm(databases, services):
    stores = databases.new()
    one = services("one").start(stores)
    push(stores, 3)
    one.sign()
    text = (one.last / FILE).read_text()
    (one.last / FILE).write_text(text[:20])
    push(stores, 3)
    assert one.sign() == 0
    assert alarm_of(stores) == "folder-unusable"
    (one.last / FILE).write_text(text)
    assert one.sign() == 1
    assert alarm_of(stores) is None


@pytest.mark.slow
def test_an_interrupted_takeover_is_repeated(databases, services, monkeypatch):
    """Nobody signs until it is complete."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    with monkeypatch.context() as patch:
        patch.setattr(signers_module, "START", "SELECT 1 / 0")
        result = CliRunner().invoke(
            cli,
            [
                *("keys", "takeover", "--from", str(one.last), "--data", str(other.data)),
                *("--keys", str(other.keys), "--database-url", stores.datastore.url),
            ],
        )
        assert result.exit_code == 3
    push(stores, 3)
    assert (one.sign(), other.sign()) == (0, 0)
    other.take_over(one)
    assert (one.sign(), other.sign()) == (0, 1)


@pytest.mark.slow
def test_a_takeover_waits_for_a_running_signature(databases, services):
    """The old service is still signing. Its checkpoint is then one of those that are compared."""
    stores = databases.new()
    one, other = services("one").start(stores), services("other").start(stores)
    push(stores, 3)
    one.sign()
    folder = identify_folder(one.last).folder
    told = []
    with stores.proofs.signing("s", folder) as is_ours:
        assert is_ours
        thread = Thread(target=lambda: told.append(other.take_over(one)))
        thread.start()
        thread.join(1)
        assert thread.is_alive() and not told
    thread.join(20)
    assert told
    with stores.proofs.signing("s", folder) as is_ours:
        assert not is_ours


def test_the_command_refuses_nonsense(databases, services, tmp_path):
    stores = databases.new()
    one = services("one").start(stores)
    push(stores, 3)
    one.sign()
    one.run("keys", "takeover", code=2)
    one.run("keys", "takeover", "--from", "x", "--lost", "y", code=2)
    assert "there is no folder" in one.run("keys", "takeover", "--from", "/none", code=3)
    assert "of this service itself" in one.take_over(one, code=3)
    before = (one.last / FILE).read_bytes()
    damaged = services("damaged")
    shutil.copytree(one.last, damaged.last)
    [file] = damaged.last.glob("s/*")
    file.write_bytes(file.read_bytes().replace(b"\n3\n", b"\n2\n"))
    assert "last-checkpoint-unusable" in one.take_over(damaged, code=3)
    assert (one.last / FILE).read_bytes() == before
    push(stores, 1)
    assert one.sign() == 1, "a refused takeover has changed nothing"


# Witnesses


class Cosigner(Service):
    """The web part of a service that is a witness."""

    def __init__(self, data: Path, keys: Path, signed: Signed):
        super().__init__(data, keys, signed)
        self.last = data / "witness"

    def serve(self, stores: PostgresStores, log, client_of) -> None:
        self.stores = stores
        cosigner = read_keys(self.keys).cosigner("w.test/witness")
        signers = Signers(stores.datastore, "witness")
        self.witness = Witness(self.last, cosigner, [log], signers)
        app = create_app(
            store=stores.log,
            master=stores.master,
            ready=dict,
            alarms=partial(alarms, stores.datastore),
            add_checkpoint=self.witness.add_checkpoint,
            access=OpenAccess(),
        )
        self.client = client_of(app)

    def take_over(self, other: Service | None = None, code: int = 0) -> str:
        how = ["--lost", "the disk died"] if other is None else ["--from", str(other.last)]
        return self.run("keys", "takeover", "--witness", *how, code=code)


def test_one_folder_cosigns(databases, tmp_path, client_of):
    """Two folders of one witness would each cosign another history."""
    make_keys(tmp_path / "keys")
    signer = Signer("log.test/spaces/s/1", b"k" * 32)
    log = Verifier(signer.name, public_key_of(signer.private))
    stores = databases.new()
    one, other = (Cosigner(tmp_path / name, tmp_path / "keys", Signed()) for name in ("a", "b"))
    for service in (one, other):
        service.serve(stores, log, client_of)

    def ask(service: Cosigner, root: bytes, size: int = 1, old: int = 0):
        text = Checkpoint(signer.name, size, root).text
        body = AddCheckpoint(old, [], Note(text, [signer.sign(text)])).encoded
        return service.client.post("/v1/witness/add-checkpoint", data=body)

    dump = databases.dump(stores)
    assert ask(one, b"1" * 32).status_code == 200
    answer = ask(other, b"2" * 32)
    assert (answer.status_code, answer.json["code"]) == (503, "another-folder")
    assert other.client.get("/readyz").json["alarms"] == {"another-folder": 1}
    assert "witness in the folder" in other.run("status", code=1)
    assert ask(one, b"1" * 32, old=1).status_code == 200

    other.take_over(one)
    assert ask(one, b"1" * 32, old=1).status_code == 503
    assert ask(other, b"2" * 32).status_code == 409, "it knows the first one"
    assert ask(other, b"1" * 32, old=1).status_code == 200

    restored = databases.restore(dump)
    one.serve(restored, log, client_of)
    assert ask(one, b"1" * 32, old=1).status_code == 503, "its folder is marked"
    other.serve(restored, log, client_of)
    assert ask(other, b"1" * 32, old=1).status_code == 200

    shutil.rmtree(other.last)
    assert ask(other, b"2" * 32).status_code == 503
    other.take_over()
    assert ask(other, b"2" * 32).status_code == 200
    assert "log-forked" in other.take_over(one, code=3), "both have cosigned"
