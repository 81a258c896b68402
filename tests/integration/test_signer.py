"""The signer never contradicts an earlier checkpoint, even after the database was restored."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from threading import Event, Thread

import pytest
from click.testing import CliRunner

from foldlog.domain.errors import BeyondTree, StorageUnavailable, UnknownSpace
from foldlog.domain.merkle import check_consistency
from foldlog.domain.notes import Verifier, open_checkpoint, origin_of
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import Importer
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.status import checkpoints, gauges
from foldlog.infrastructure.signing import signer as signer_module
from foldlog.infrastructure.signing.keys import KeysUnusable, make_keys, read_keys, rotate_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.scripts.main import cli
from tests.conftest import PostgresStores, create_database
from tests.helpers import changeset, push_of, put

ORIGIN = "foldlog.test"


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def sign(keys, tmp_path, monkeypatch):
    """Signs all unsigned spaces of some stores, as a process right after its start does."""
    monkeypatch.setattr(signer_module, "RETRY_SECONDS", 0)

    def sign(stores: PostgresStores) -> int:
        """Signs all unsigned spaces of some stores, as a process right after its start does."""
        stores.grow_trees()
        last = tmp_path / "checkpoints"
        return CheckpointSigner(stores.proofs, keys=keys, last=last, origin=ORIGIN).sign_all()

    return sign


def push(stores: PostgresStores, count: int, space: str = "s") -> None:
    stores.push(space, push_of(*[changeset(put(str(n), n=n)) for n in range(count)]))


def published(stores: PostgresStores, keys, space: str = "s"):
    """Returns the published checkpoint, verified with the public keys."""
    origin = origin_of(ORIGIN, space, stores.proofs.tree(space).log)
    ring = read_keys(keys)
    return open_checkpoint(stores.proofs.checkpoint(space), ring.verifiers(origin), origin=origin)


def copy_of(stores: PostgresStores, source: PostgresStores) -> None:
    """Restores a backup of `source`: the same log, cut at its earlier head."""
    page = source.range_after("s", RangeQuery(0, 1))
    entries = source.entries("s", through=page.head)
    Importer(stores.datastore).run("s", page.log, entries)


@pytest.fixture
def restored(cluster):
    """The stores of a second, empty database."""
    with Datastore(create_database(cluster)[0]) as datastore:
        yield PostgresStores(datastore)


def test_a_signed_checkpoint_verifies(stores, sign, keys):
    """Each checkpoint extends the one before; a signed log gets no second checkpoint."""
    push(stores, 5)
    assert sign(stores) == 1
    first, _ = published(stores, keys)
    push(stores, 300)
    assert (sign(stores), sign(stores)) == (1, 0)
    second, _ = published(stores, keys)
    assert (first.size, second.size) == (5, 305)
    proof = stores.proofs.consistency("s", 5, 305)
    check_consistency(5, first.root, 305, second.root, proof.path)


def be_killed_before_publication(stores, sign, monkeypatch):
    class Killed(BaseException):
        """Simulates a kill: it is a BaseException, so the code under test lets it pass."""

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stores.proofs, "publish", dies)
        with pytest.raises(Killed):
            sign(stores)


def test_it_is_on_the_disk_before_it_is_published(stores, sign, tmp_path, monkeypatch):
    """A kill between file and publication leaves the file; the next run publishes the same note."""
    push(stores, 5)
    be_killed_before_publication(stores, sign, monkeypatch)
    (file,) = (tmp_path / "checkpoints" / "s").iterdir()
    sign(stores)
    assert stores.proofs.checkpoint("s") == file.read_bytes()


def test_an_older_backup_is_not_signed(stores, restored, sign, keys):
    """A log was signed up to 10, restored to 6, and grew differently. The signer refuses it while
    it is shorter and when it is longer, with an alarm each time.
    """
    push(stores, 6)
    copy_of(restored, stores)
    push(stores, 4)
    sign(stores)

    assert sign(restored) == 0
    (line,) = checkpoints(restored.datastore, "s")
    assert (line.alarm, line.size) == ("log-shrunk", 0)
    push(restored, 9)
    assert sign(restored) == 0
    (line,) = checkpoints(restored.datastore, "s")
    assert line.alarm == "log-forked" and "10 events that were signed" in line.alarm_detail
    by_name = {gauge.name: gauge.value for gauge in gauges(restored.datastore)}
    assert by_name["foldlog_signing_stopped_spaces"] == 1

    push(restored, 3, space="other")
    assert sign(restored) == 1, "other spaces go on"


def test_an_older_backup_is_noticed_before_it_grows(stores, restored, sign, keys):
    """The backup contains its own older checkpoint, so it looks completely signed."""
    push(stores, 6)
    sign(stores)
    copy_of(restored, stores)
    restored.grow_trees()
    log = restored.proofs.heads("s").log
    restored.proofs.publish("s", log, 6, stores.proofs.checkpoint("s"))
    assert sign(restored) == 0
    assert [line.alarm for line in checkpoints(restored.datastore, "s")] == [None]
    push(stores, 4)
    sign(stores)

    assert sign(restored) == 0
    assert [line.alarm for line in checkpoints(restored.datastore, "s")] == ["log-shrunk"]


def test_signing_resumes_after_a_complete_restore(stores, restored, sign, keys):
    """A backup that contains all signed events is signed again."""
    push(stores, 6)
    sign(stores)
    copy_of(restored, stores)
    push(restored, 2)
    assert sign(restored) == 1
    assert published(restored, keys)[0].size == 8


def test_an_alarm_ends_when_its_cause_does(stores, sign, keys):
    """A tile is changed and changed back."""
    push(stores, 6)
    sign(stores)
    change = "UPDATE tiles SET hashes = set_byte(hashes, 5, 255 - get_byte(hashes, 5))"
    for code in ("log-forked", None):
        with stores.datastore.committed() as cursor:
            cursor.execute(change)
        push(stores, 1)
        sign(stores)
        assert checkpoints(stores.datastore, "s")[0].alarm == code
    assert published(stores, keys)[0].size == 8


def test_a_declared_fork_is_another_log(stores, restored, sign, keys, tmp_path):
    """After a fork, the log has a new id and origin, and the file of the old log stays."""
    push(stores, 6)
    sign(stores)
    push(restored, 3)
    with restored.datastore.committed() as cursor:
        log = stores.proofs.tree("s").log
        cursor.execute("UPDATE spaces SET log = %s", (log,))
    assert sign(restored) == 0
    url = restored.datastore.url
    told = CliRunner().invoke(cli, ["fork", "s", "--yes", "--database-url", url])
    assert told.exit_code == 0, told.output
    assert sign(restored) == 1
    assert published(restored, keys)[0].size == 3
    assert len(list((tmp_path / "checkpoints" / "s").iterdir())) == 2


def test_a_damaged_file_stops_it(stores, sign, tmp_path):
    """The last signed checkpoint is unknown, so signing stops."""
    push(stores, 6)
    sign(stores)
    (file,) = (tmp_path / "checkpoints" / "s").iterdir()
    file.write_bytes(file.read_bytes().replace(b"\n6\n", b"\n5\n"))
    push(stores, 1)
    assert sign(stores) == 0
    assert checkpoints(stores.datastore, "s")[0].alarm == "last-checkpoint-unusable"


def test_a_rotated_key_signs_and_the_old_one_verifies(stores, sign, keys):
    """Old signatures stay valid, and the old private key is deleted."""
    push(stores, 6)
    sign(stores)
    before, old = stores.proofs.checkpoint("s"), read_keys(keys).verifiers("x")[0]
    ring = rotate_keys(keys)
    assert [v.public for v in ring.verifiers("x")][1] == old.public
    assert ring.log[0].private is None and ring.log[0].retired_at
    push(stores, 1)
    assert sign(stores) == 1
    _, note = published(stores, keys)
    origin = origin_of(ORIGIN, "s", stores.proofs.tree("s").log)
    assert note.verified_by([Verifier(origin, old.public)]) == []
    assert open_checkpoint(before, ring.verifiers(origin))[0].size == 6


@pytest.mark.parametrize("restarts", [False, True])
def test_a_rotated_key_signs_the_heads_of_quiet_spaces(
    stores, keys, tmp_path, monkeypatch, restarts
):
    """A space without new events gets a signature of the new key, once, also after a restart."""
    monkeypatch.setattr(signer_module, "RETRY_SECONDS", 0)

    def signer():
        return CheckpointSigner(stores.proofs, keys=keys, last=tmp_path / "last", origin=ORIGIN)

    for space in ("s", "t"):
        push(stores, 6, space)
    stores.grow_trees()
    running = signer()
    assert (running.sign_all(), running.sign_all()) == (2, 0)
    rotate_keys(keys)
    running = signer() if restarts else running
    assert (running.sign_all(), running.sign_all()) == (2, 0)
    for space in ("s", "t"):
        checkpoint, note = published(stores, keys, space)
        new, old = read_keys(keys).verifiers(checkpoint.origin)
        assert checkpoint.size == 6 and note.verified_by([new, old]) == [new]


def test_a_rotation_that_was_killed_halfway_is_finished(stores, sign, keys, monkeypatch):
    """The file has the new signature; the next start publishes it."""
    push(stores, 6)
    sign(stores)
    rotate_keys(keys)
    be_killed_before_publication(stores, sign, monkeypatch)
    assert sign(stores) == 1
    checkpoint, note = published(stores, keys)
    (new, _) = read_keys(keys).verifiers(checkpoint.origin)
    assert note.verified_by([new]) == [new]


def test_without_a_key_nothing_is_signed(stores, tmp_path):
    """Tiles and proofs work without a key."""
    push(stores, 6)
    stores.grow_trees()
    signer = CheckpointSigner(
        stores.proofs, keys=tmp_path / "none", last=tmp_path / "last", origin=ORIGIN
    )
    assert signer.sign_all() == 0
    assert stores.proofs.inclusion("s", 3).size == 6


def test_a_service_without_a_key_says_so_at_its_start(stores, tmp_path):
    """The signer runs in the projector, so this process tells that it signs nothing."""
    command = [sys.executable, "-m", "foldlog", "projector", "--data", str(tmp_path),
               "--database-url", stores.datastore.url]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.terminate()
    assert first.startswith("nothing is signed: there is no key in")


@pytest.mark.parametrize(
    "error", [StorageUnavailable(), UnknownSpace("s"), BeyondTree(), RuntimeError("unforeseen")]
)
def test_the_signing_thread_survives_errors(stores, keys, tmp_path, monkeypatch, error):
    """The thread survives a broken connection, a swapped tree, and an unexpected error."""
    monkeypatch.setattr(signer_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(signer_module, "RETRY_SECONDS", 0.01)
    push(stores, 5)
    stores.grow_trees()
    signer = CheckpointSigner(
        stores.proofs, keys=keys, last=tmp_path / "checkpoints", origin=ORIGIN
    )
    consistency, failed = stores.proofs.consistency, Event()

    def fails_once(*given):
        if failed.is_set():
            return consistency(*given)
        failed.set()
        raise error

    monkeypatch.setattr(stores.proofs, "consistency", fails_once)
    closing = Event()
    thread = Thread(target=signer.run, args=(closing,), daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 10
        while stores.proofs.to_sign() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        closing.set()
        thread.join()
    assert failed.is_set()
    assert published(stores, keys)[0].size == 5


def test_two_signers_sign_one_after_another(stores, sign, keys, tmp_path):
    """A signer skips the spaces that another signer is working on."""
    push(stores, 6)
    stores.grow_trees()
    with stores.proofs.signing("s") as is_ours:
        assert is_ours
        assert sign(stores) == 0
    assert sign(stores) == 1


def test_a_readable_key_file_is_refused(keys):
    """A key file that other users can read is refused."""
    file = keys / "keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert make_keys(keys) == read_keys(keys), "what is there is kept"
    file.chmod(0o644)
    with pytest.raises(KeysUnusable, match="chmod 600"):
        read_keys(keys)


def test_keys_as_commands(stores, tmp_path):
    """`new`, `list`, `rotate` and `show` work; a second `new` is refused."""

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["keys", *words])
        assert result.exit_code == code, result.output
        return result.output

    folder = str(tmp_path / "deep" / "keys")
    run("new", "--keys", folder)
    run("new", "--keys", folder, code=3)
    run("rotate", "--keys", folder)
    listed = run("list", "--keys", folder).splitlines()
    assert [line.split()[0] for line in listed] == ["log", "log", "witness"]
    assert "private" not in run("list", "--json", "--keys", folder)
    push(stores, 1)
    shown = run("show", "s", "--keys", folder, "--database-url", stores.datastore.url)
    vkeys = [Verifier.parse(line) for line in shown.split()]
    assert len(vkeys) == 2 and vkeys[0].name.startswith("foldlog.local/spaces/s/")


def test_the_pause_after_a_slow_search_is_bounded(stores, keys, tmp_path, monkeypatch):
    """A search that waited for a lock for 12 seconds kept checkpoints away for four minutes."""
    clock = iter([100.0, 112.0])
    signer = CheckpointSigner(stores.proofs, keys=keys, last=tmp_path / "last", origin=ORIGIN)
    with monkeypatch.context() as patch:
        patch.setattr(signer_module.time, "monotonic", lambda: next(clock, 112.0))
        patch.setattr(stores.proofs, "to_sign", list)
        patch.setattr(stores.proofs, "published", list)
        signer.sign_all()
    assert signer._pause == signer_module.PAUSE_SECONDS_MAX == 10
