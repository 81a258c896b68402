"""`foldlog verify` accepts a correct log from every source, and finds each error."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import psycopg
import pytest
from click.testing import CliRunner

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.rates import Lease
from foldlog.api.http.resources import Resources
from foldlog.api.operations import proofs as proofs_module
from foldlog.api.server import AsgiServer
from foldlog.domain.erasure import erase_keys
from foldlog.domain.events import decode_event
from foldlog.domain.merge import fold, fold_record
from foldlog.domain.merkle import Tile
from foldlog.domain.notes import Signer
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.log import ranges as log_module
from foldlog.infrastructure.postgres.master import projection as projection_module
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.signing.keys import make_keys, read_keys
from foldlog.scripts.exports import archive as archive_module
from foldlog.scripts.exports.lines import line_of
from foldlog.scripts.main import cli
from foldlog.scripts.verification import master as master_module
from foldlog.scripts.verification.disk_backed import DiskBackedRecords
from foldlog.scripts.verification.stored_records import StoredRecords
from tests.archives import read_members, write_members
from tests.client.serving import serving
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import random_history
from tests.signing import SignedSpace

KEPT = 40


@pytest.fixture
def audited(stores, database, tmp_path, monkeypatch):
    """A signed log of more than one tile, with the auditor's key and older checkpoint."""
    monkeypatch.setenv("FOLDLOG_DATA", str(tmp_path))
    monkeypatch.setattr(archive_module, "PART_EVENTS", 100)
    make_keys(tmp_path / "keys")
    audited = Audited(stores, database, tmp_path)
    random_history(stores, "s", seed=1, pushes=KEPT)
    audited.sign()
    (tmp_path / "kept").write_bytes(stores.proofs.checkpoint("s"))
    stores.push("s", push_of(*[changeset(put(str(n), n=n, text="\u2028\r")) for n in range(400)]))
    audited.sign()
    return audited


class Audited(SignedSpace):
    def __init__(self, stores, owner_url, folder):
        super().__init__(stores, folder)
        self.owner_url = owner_url

    def run(self, *words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == code, result.output
        return result.output

    def verify(self, *words: str, code: int = 0, trusting: bool = False) -> str:
        known = () if trusting else ("--key", self.vkey, "--checkpoint", str(self.folder / "kept"))
        url = (
            ()
            if {"--file", "--url"} & set(words)
            else ("s", "--database-url", self.stores.datastore.url)
        )
        return self.run("verify", *url, *words, *known, code=code)

    def archive(self, name: str = "log.tar.gz") -> str:
        file = str(self.folder / name)
        self.run("export", "s", "--archive", "-o", file, "--database-url",
                 self.stores.datastore.url)  # fmt: skip
        return file


def test_a_correct_log_passes_from_the_database(audited):
    """Hashes, signature, kept checkpoint, tiles and master table are verified."""
    told = audited.verify("--save", str(audited.folder / "new"))
    for finding in ("440 events", "signed by", "kept checkpoint", "tiles", "master table"):
        assert finding in told
    assert (audited.folder / "new").read_bytes() == audited.stores.proofs.checkpoint("s")
    assert "which proves little" in audited.verify(trusting=True)


@contextmanager
def served(audited):
    """Runs a service on this log and gives its URL."""
    parts = audited.stores
    ring = read_keys(audited.folder / "keys")

    def verifiers(space):
        return ring.verifiers(f"foldlog.local/spaces/{space}/{parts.proofs.tree(space).log}")

    app = create_app(store=parts.log, master=parts.master, ready=dict, tree=parts.proofs,
                     verifiers=verifiers, access=OpenAccess())  # fmt: skip
    with Resources(4) as resources, serving(AsgiServer(app, resources)) as url:
        yield url


def test_it_passes_from_a_running_service(audited):
    """HTTP requests with a client's rights are enough."""
    with served(audited) as url:
        told = audited.verify("s", "--url", url)
        assert "440 events" in told and "master table is the fold" in told
        assert "400 events" in audited.verify("s", "--url", url, "--from", "41")


@pytest.fixture
def meanwhile(monkeypatch):
    """Runs a function right after the head of the log was read."""

    def happens(work) -> None:
        read, once = PostgresEventStore.range_after, [work]

        def range_after(self, *given):
            page = read(self, *given)
            if once:
                once.pop()()
            return page

        monkeypatch.setattr(PostgresEventStore, "range_after", range_after)

    return happens


def grow(audited) -> None:
    audited.stores.push("s", push_of(changeset(put("new"))))
    audited.sign()


def erase(audited) -> None:
    audited.stores.erase("s", [("tasks", "7")], reason="asked to")
    audited.sign()


@pytest.mark.parametrize("work", [grow, erase])
@pytest.mark.parametrize("over_http", [False, True])
def test_changes_during_a_verification_are_allowed(audited, meanwhile, work, over_http):
    """The checkpoint may cover later events, and a later event may erase values."""
    with served(audited) as url:
        meanwhile(lambda: work(audited))
        assert "440 events" in audited.verify(*(("s", "--url", url) if over_http else ()))


def failing_at(seq: int):
    def fold_but(was, ops, cause, conflicts):
        if cause.seq == seq:
            raise KeyError("riddle")
        return fold_record(was, ops, cause, conflicts)

    return fold_but


@pytest.mark.parametrize("over_http", [False, True])
def test_a_skipped_event_is_left_out_of_the_fold(audited, over_http, monkeypatch):
    """The master table lacks a skipped event, and the output names it."""
    audited.stores.push("s", push_of(changeset(put("7", n=-1), put("8", n=-1))))
    with monkeypatch.context() as patch:
        patch.setattr(projection_module, "fold_record", failing_at(441))
        audited.stores.project()
    audited.stores.skip("s", 441, reason="too much")
    audited.sign()

    with served(audited) as url:
        told = audited.verify(*(("s", "--url", url) if over_http else ()))

    assert "442 events" in told and "skipped, as events say: seq 441" in told
    assert "the master table is the fold of these events" in told


def test_an_event_that_cannot_be_folded_is_an_error(audited, monkeypatch):
    monkeypatch.setattr(master_module, "fold_record", failing_at(48))
    assert "seq 48: it cannot be folded: 'riddle'" in audited.verify(code=1)


def test_an_archive_holds_what_its_checkpoint_signs(audited, meanwhile):
    """It contains all signed events, even if the log grows during the export."""
    meanwhile(lambda: grow(audited))
    assert "signed by" in audited.verify("--file", audited.archive())


@pytest.mark.parametrize("words", [("--archive", "-o", "log.tar"), ("-o", "log.jsonl")])
def test_an_erasure_during_an_export_fails_the_export(audited, meanwhile, words):
    """The export would lack the event that explains the erased values, so it fails."""
    *words, file = words
    file = audited.folder / file
    meanwhile(lambda: erase(audited))
    url = audited.stores.datastore.url
    told = audited.run("export", "s", *words, str(file), "--database-url", url, code=3)
    assert "erased-meanwhile" in told and not file.exists()


@pytest.mark.parametrize("name", ["log.tar", "log.tar.gz"])
def test_it_passes_from_an_archive(audited, name):
    """An archive verifies without a service; an export of lines does too, but has no signature."""
    told = audited.verify("--file", audited.archive(name))
    assert "440 events" in told and "tiles are of these events" in told
    lines = str(audited.folder / "log.jsonl.gz")
    audited.run("export", "s", "-o", lines, "--database-url", audited.stores.datastore.url)
    assert "not signed" in audited.verify("--file", lines)


def test_an_archive_is_imported_byte_for_byte(audited):
    """An empty space gets the same events, salts and root."""
    file, url = audited.archive(), audited.stores.datastore.url
    audited.run("import", file, "--space", "t", "--database-url", url)
    parts = audited.stores
    assert list(parts.entries("t", through=440)) == list(parts.entries("s", through=440))
    parts.grow_trees()
    assert parts.proofs.consistency("t", 40) == parts.proofs.consistency("s", 40)


def test_it_continues_from_a_state_or_a_seq(audited):
    """A run continues from its state, or from any seq by the tiles; the signed root proves both."""
    state = str(audited.folder / "state")
    assert "100 events" in audited.verify("--state", state, "--to", "100")
    assert "340 events" in audited.verify("--state", state)
    assert "0 events" in audited.verify("--state", state)
    audited.stores.push("s", push_of(changeset(put("x"))))
    audited.sign()
    assert "1 events" in audited.verify("--state", state)
    assert "42 events" in audited.verify("--from", "400")
    assert json.loads((audited.folder / "state").read_text())["place"]["seq"] == 441
    file = audited.archive()
    (audited.folder / "state").unlink()
    told = audited.verify("--file", file, "--state", state, "--to", "300")
    assert "not compared with the signed checkpoint" in told
    assert "141 events" in audited.verify("--file", file, "--state", state)


def change(audited, statement: str) -> None:
    """Changes the database directly, as an attacker with access to the disk can."""
    with psycopg.connect(audited.owner_url) as conn:
        conn.execute("ALTER TABLE events DISABLE TRIGGER USER")
        conn.execute("GRANT UPDATE, DELETE ON events TO CURRENT_USER")
        conn.execute(statement)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE events SET state = convert_to(replace(convert_from(state, 'UTF8'), '\"n\":7,', "
         "'\"n\":8,'), 'UTF8') WHERE originator_version = 48", "seq 48: the leaf commits"),
        ("UPDATE events SET salt = set_byte(salt, 3, 255 - get_byte(salt, 3)) "
         "WHERE originator_version = 99", "seq 99: the leaf commits"),
        ("UPDATE events SET ops_hash = set_byte(ops_hash, 3, 255 - get_byte(ops_hash, 3)) "
         "WHERE originator_version = 99", "seq 99: the leaf commits"),
        ("UPDATE events SET state = convert_to(replace(convert_from(state, 'UTF8'), '\"base\":0', "
         "'\"base\":1'), 'UTF8') WHERE originator_version = 300", "seq 300: it is another event"),
        ("UPDATE events SET state = convert_to(replace(convert_from(state, 'UTF8'), '2026-', "
         "'2025-'), 'UTF8') WHERE originator_version = 300", "seq 300: received at 2025"),
        ("DELETE FROM events WHERE originator_version = 77", "seq 77: the log continues with 78"),
        ("DELETE FROM events WHERE originator_version = 440", "seq 440: the events end here"),
        ("DELETE FROM events WHERE originator_version > 438; UPDATE spaces SET head = 438",
         "the log ends at seq 438; the signed checkpoint has 440"),
        ("DELETE FROM events WHERE originator_version > 30; UPDATE spaces SET head = 30; "
         "DELETE FROM checkpoints", "it is not signed"),
        ("UPDATE events SET originator_version = originator_version + 10000 "
         "WHERE originator_version IN (50, 51); UPDATE events SET originator_version = "
         "CASE originator_version WHEN 10050 THEN 51 ELSE 50 END "
         "WHERE originator_version > 10000", "seq 50: the log continues with 51"),
        ("UPDATE tiles SET hashes = set_byte(hashes, 99, 255 - get_byte(hashes, 99)) "
         "WHERE number = 1 AND level = 0", "tile 0/1 is wrong at seq 260"),
        ("UPDATE records SET own_fields = '{\"n\": 0}' WHERE id = '7'",
         "records tasks/7: own_fields is"),
        ("DELETE FROM records WHERE id = '7'", "records tasks/7 is missing"),
        ("UPDATE spaces SET log = gen_random_uuid(); "
         "UPDATE checkpoints SET log = (SELECT log FROM spaces)", "no known key has signed"),
    ],
)  # fmt: skip
def test_each_error_is_found(audited, statement, told):
    """The output names the first wrong seq; the exit code is 1."""
    change(audited, statement)
    said = " ".join(audited.verify(code=1).split())
    assert told in said, said


def test_a_signature_by_another_key_is_refused(audited):
    """A checkpoint of another log is refused, too."""
    other = Signer(audited.vkey.partition("+")[0], b"x" * 32).verifier().vkey
    url = audited.stores.datastore.url
    told = audited.run("verify", "s", "--database-url", url, "--key", other, code=1)
    assert "no known key" in told


def test_a_log_that_ends_before_the_kept_checkpoint(audited):
    """An older archive is compared with a newer checkpoint."""
    file = audited.archive()
    grow(audited)
    (audited.folder / "kept").write_bytes(audited.stores.proofs.checkpoint("s"))
    told = " ".join(audited.verify("--file", file, code=1).split())
    assert "the log ends at seq 440; the kept checkpoint has 441" in told


@pytest.mark.parametrize("part", ["events/000000000101.jsonl", "tile/0/000", "tile/1/000.p/1",
                                  "tile/0/001.p/184", "checkpoint"])  # fmt: skip
def test_a_flipped_byte_anywhere_in_an_archive(audited, part):
    """A few bytes of each member are flipped, one at a time."""
    parts = read_members(audited.archive("log.tar"))
    assert part in dict(parts), [name for name, _ in parts]
    data = dict(parts)[part]
    for place in range(0, len(data), max(1, len(data) // 17)):
        if data[place : place + 1].isspace():
            continue
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        changed = [(name, flipped if name == part else found) for name, found in parts]
        file = write_members(str(audited.folder / "bad.tar"), changed)
        result = CliRunner().invoke(cli, ["verify", "--file", file, "--key", audited.vkey])
        assert result.exit_code in (1, 3), (place, result.output)


def test_parts_that_are_missing_from_an_archive(audited):
    """Missing events, missing tiles, and a missing end are found."""
    parts = read_members(audited.archive("log.tar"))
    for missing in (
        *("events/000000000101.jsonl", "tile/0/000", "tile/0/001.p/184"),
        *("log.json", "checkpoint"),
    ):
        file = write_members(
            str(audited.folder / "bad.tar"), [part for part in parts if part[0] != missing]
        )
        result = CliRunner().invoke(cli, ["verify", "--file", file, "--key", audited.vkey])
        assert result.exit_code in (1, 3), (missing, result.output)
    whole = (audited.folder / "log.tar").read_bytes()
    (audited.folder / "cut.tar").write_bytes(whole[: len(whole) // 2])
    audited.verify("--file", str(audited.folder / "cut.tar"), code=3)


def test_a_damaged_export_cannot_be_read(audited):
    """A byte of the compressed lines is flipped."""
    lines = audited.folder / "log.jsonl.gz"
    audited.run("export", "s", "-o", str(lines), "--database-url", audited.stores.datastore.url)
    whole = lines.read_bytes()
    for place in range(100, len(whole) - 100, len(whole) // 13):
        lines.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises((OSError, zlib.error, EOFError)), gzip.open(lines) as file:
            file.read()
        for words in (["verify", "--file", str(lines)],
                      ["import", str(lines), "--space", "t", "--database-url",
                       audited.stores.datastore.url]):  # fmt: skip
            result = CliRunner().invoke(cli, words)
            assert result.exit_code in (1, 3), (place, result.output)
            assert isinstance(result.exception, SystemExit), (place, result.exception)


def test_the_fold_is_compared_in_little_memory(audited, monkeypatch):
    """Errors are found, too, when most records are in the file."""
    few = partial(StoredRecords, in_memory_max=3)
    monkeypatch.setattr(master_module, "StoredRecords", few)
    assert "the master table is the fold of these events: " in audited.verify()
    change(audited, "UPDATE records SET own_fields = '{\"n\": 0}' WHERE id = '7'")
    assert "records tasks/7: own_fields is" in audited.verify(code=1)
    change(audited, "DELETE FROM records WHERE id = '7'")
    assert "records tasks/7 is missing" in audited.verify(code=1)


def test_records_in_the_file_fold_like_those_in_memory(audited):
    """Records in the file and in memory fold to the same result."""
    stores = audited.stores
    spilled, in_memory = DiskBackedRecords(in_memory_max=2), {}
    for entry in stores.entries("s", through=440):
        for records in (spilled, in_memory):
            fold(records, decode_event(entry.state))
    assert list(spilled) == [in_memory[key] for key in sorted(in_memory)]
    for key, record in in_memory.items():
        assert spilled.get(key) == record == spilled.pop(key)
        assert spilled.get(key) is None
    assert list(spilled) == []


def test_a_log_of_large_events_is_read_in_parts(audited, monkeypatch):
    """Exports, archives and bundles hold only a few events in memory, even large ones."""
    whole, held = list(audited.stores.entries("s", through=440)), []
    monkeypatch.setattr(log_module, "ENTRIES_BYTES", 2_000)
    monkeypatch.setattr(proofs_module, "PIECE_BYTES", 2_000)
    largest = max(len(entry.state) for entry in whole)
    fetch_all = Datastore.fetch_all

    def counted(self, *args, **kwargs):
        held.append(fetch_all(self, *args, **kwargs))
        return held[-1]

    monkeypatch.setattr(Datastore, "fetch_all", counted)
    assert list(audited.stores.entries("s", through=440)) == whole
    assert len(held) > 440 * min(len(entry.state) for entry in whole) / (2_000 + largest)
    header = proofs_module.ExportHeader("export", 1, "s", "log", 440)
    pieces = list(proofs_module._lines(audited.stores.log, header, 0, Lease()))
    assert b"".join(pieces[1:]) == b"".join(line_of(entry) for entry in whole)
    assert max(map(len, pieces)) < 2_000 + largest + 200


SMALL = str(Path(__file__).parents[2] / "docs/reference/verify_log.py")


def small(audited, file: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SMALL, file, "--key", audited.vkey],
                          capture_output=True, text=True, check=False)  # fmt: skip


@pytest.mark.parametrize("seq", [7, 300, 439])
@pytest.mark.parametrize("source", ["database", "service", "archive", "small"])
def test_a_changed_header_is_named(audited, seq, source):
    """The tiles still have the old leaf, so the first wrong seq is known from each source."""
    change(audited, "UPDATE events SET state = convert_to(replace(convert_from(state, 'UTF8'), "
           f"'-11-23T', '-11-22T'), 'UTF8') WHERE originator_version = {seq}")  # fmt: skip
    if source == "database":
        told = audited.verify(code=1)
    elif source == "service":
        with served(audited) as url:
            told = audited.verify("s", "--url", url, code=1)
    else:
        file = archive_with_the_tiles_of_before(audited)
        if source == "archive":
            told = audited.verify("--file", file, code=1)
        else:
            result = small(audited, file)
            assert result.returncode == 1
            told = result.stderr
    assert f"seq {seq}" in " ".join(told.split()), told


def archive_with_the_tiles_of_before(audited) -> str:
    """An export makes the tiles anew; this one has those of the database."""
    parts = read_members(audited.archive("log.tar"))
    for n, (name, data) in enumerate(parts):
        if name.startswith("tile/"):
            level, number = name.split("/")[1:3]
            tile = Tile(int(level), int(number.removesuffix(".p")))
            found = audited.stores.proofs.tiles("s", [tile])[tile]
            assert len(found) == len(data)
            parts[n] = (name, found)
    return write_members(str(audited.folder / "before.tar"), parts)


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff" * 700, b'{"a":1}\n', b"log\n" * 9, b"\x1f\x8b\x08\0\0\0", None]
)
def test_the_small_verifier_says_a_sentence_for_other_files(audited, content):
    """Empty, binary, JSON, text, a truncated gzip, a folder, and a missing file."""
    file = audited.folder / "other.tar"
    if content is not None:
        file.write_bytes(content)
    for path in (file, audited.folder, audited.folder / "missing"):
        result = small(audited, str(path))
        assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
        assert result.stderr.startswith("WRONG: "), result.stderr


def test_lines_need_a_checkpoint(audited):
    """With a key, an export without its checkpoint is wrong; with it, every change is found."""
    lines = audited.folder / "log.jsonl"
    audited.run("export", "s", "-o", str(lines), "--database-url", audited.stores.datastore.url)
    key = ("--key", audited.vkey)
    assert "not signed" in audited.run("verify", "--file", str(lines), *key, code=1)
    (audited.folder / "now").write_bytes(audited.stores.proofs.checkpoint("s"))
    signed = (*key, "--checkpoint", str(audited.folder / "now"))
    assert "440 events" in audited.run("verify", "--file", str(lines), *signed)
    lines.write_bytes(lines.read_bytes().replace(b'"base":0', b'"base":1', 1))
    audited.run("verify", "--file", str(lines), *signed, code=1)


def test_a_tail_that_is_not_signed_yet(audited):
    """It is told, and it is wrong when it is older than the limit."""
    audited.stores.push("s", push_of(changeset(put("new"))))
    audited.stores.project()
    assert "1 events not signed yet, from seq 441" in audited.verify()
    assert "not signed" in audited.verify("--unsigned-max", "0", code=1)


def test_a_healthy_log_under_load_is_never_wrong(audited):
    """Pushes, projections, erasures and a rebuild run while the log is verified again and again."""
    ends, stores = Event(), audited.stores

    def load():
        for n in itertools.count():
            if ends.is_set():
                return
            stores.push("s", push_of(*[changeset(put(f"l{n % 7}", n=n)) for _ in range(5)]))
            if n % 3 == 0:
                stores.project()
                stores.grow_trees()
            if n % 10 == 9:
                stores.erase("s", [("tasks", f"l{n % 7}")], reason="r")
            if n % 15 == 14:
                Rebuilder(stores.datastore, MasterProjection()).rebuild("s")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(load)
        try:
            for _ in range(6):
                assert "wrong" not in audited.verify("--unsigned-max", "1000")
        finally:
            ends.set()
        running.result()


def test_values_that_no_event_erased_are_evidence(audited):
    """The log can still be exported. `verify` calls the database and the file wrong."""
    entry = next(iter(audited.stores.entries("s", after=99, through=100)))
    state, salt = erase_keys(entry.state, entry.salt, set(decode_event(entry.state).keys))
    with psycopg.connect(audited.owner_url) as conn:
        conn.execute("ALTER TABLE events DISABLE TRIGGER USER")
        conn.execute("UPDATE events SET state = %s, salt = %s WHERE originator_version = 100",
                     [state, salt])  # fmt: skip
    assert "no event erased it" in audited.verify(code=1)
    assert "no event erased it" in audited.verify("--file", audited.archive(), code=1)
