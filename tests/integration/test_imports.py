"""What is imported is what was signed, or nothing; and it is hidden until it is whole."""

from __future__ import annotations

import threading

import psycopg
import pytest
from click.testing import CliRunner

from foldlog.domain.errors import SpaceImporting, UnknownSpace
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import ImportConflict, Importer, NotImporting
from foldlog.infrastructure.signing.keys import make_keys
from foldlog.scripts.main import cli
from tests.archives import read_members, write_members
from tests.conftest import as_service
from tests.helpers import changeset, pull_all, push_of, put
from tests.signing import SignedSpace

EVENTS = 300


@pytest.fixture
def signed(stores, database, cluster, tmp_path, monkeypatch):
    """A signed log of more than one tile, as an archive of its own."""
    monkeypatch.setenv("FOLDLOG_DATA", str(tmp_path))
    make_keys(tmp_path / "keys")
    stores.push("s", push_of(*[changeset(put(str(n), n=n)) for n in range(EVENTS)]))
    signed = Signed(stores, tmp_path, as_service(cluster, database))
    signed.sign()
    signed.run("export", "s", "--archive", "-o", str(tmp_path / "log.tar"))
    return signed


class Signed(SignedSpace):
    def __init__(self, stores, folder, url):
        super().__init__(stores, folder)
        self.url = url

    def run(self, *words, code=0):
        result = CliRunner().invoke(cli, [*words, "--database-url", self.url])
        assert result.exit_code == code, result.output
        return result.output

    def members(self):
        return read_members(self.folder / "log.tar")

    def rewritten(self, members):
        return write_members(self.folder / "bad.tar", members)


def test_a_signed_archive_is_imported_whole(signed):
    """It has the same bytes. Without --key the command says that the archive vouches for itself."""
    file = str(signed.folder / "log.tar")
    assert "vouches for itself" in signed.run("import", file, "--space", "t")
    assert pull_all(signed.stores, "t") == pull_all(signed.stores, "s")
    assert "imported 0 events" in signed.run("import", file, "--space", "t", "--key", signed.vkey)


def _replaced(members, name, change):
    return [(n, change(data) if n == name else data) for n, data in members]


EVENTS_FILE, TILE = "events/000000000001.jsonl", "tile/0/000"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: _replaced(m, EVENTS_FILE, lambda d: d.replace(b'"n":7}', b'"n":8}')),
        lambda m: _replaced(m, EVENTS_FILE, lambda d: d.replace(b'"base":0', b'"base":1', 1)),
        lambda m: _replaced(m, EVENTS_FILE, lambda d: d[:11] + b"00" + d[13:]),
        lambda m: _replaced(m, TILE, lambda d: d[:99] + bytes([d[99] ^ 1]) + d[100:]),
        lambda m: _replaced(m, EVENTS_FILE, lambda d: d[: d.rindex(b"\n", 0, -1) + 1]),
        lambda m: _replaced(m, EVENTS_FILE, lambda d: d + d[: d.index(b"\n") + 1]),
        lambda m: _replaced(m, "log.json", lambda d: d.replace(b'"head":300', b'"head":299')),
        lambda m: _replaced(m, "log.json", lambda d: d.replace(b'"log":"', b'"log":"x')),
        lambda m: _replaced(m, "checkpoint", lambda d: d.replace(b"\n300\n", b"\n299\n")),
        lambda m: [(n, d) for n, d in m if n != "checkpoint"],
        lambda m: [(n, d) for n, d in m if n != TILE],
        lambda m: [*m, m[-1]],
        lambda m: [m[0], m[2], m[1], *m[3:]],
        lambda m: [*m[:2], ("extra", b"x"), *m[2:]],
    ],
    ids=[
        *("value", "header", "salt", "tile", "tail-cut", "duplicate", "head", "log-id"),
        *("checkpoint", "no-checkpoint", "no-tile", "twice", "swapped", "foreign"),
    ],
)
def test_a_tampered_archive_leaves_nothing(signed, change):
    """The import is refused with `invalid-export`, and no space is there afterwards."""
    file = signed.rewritten(change(signed.members()))
    assert "invalid-export" in signed.run("import", file, "--space", "t", code=3)
    with pytest.raises(UnknownSpace):
        signed.stores.range_after("t", RangeQuery(0, 1))
    with psycopg.connect(signed.url) as conn:
        for table, name in (("events", "originator_id"), ("spaces", "space"), ("devices", "space")):
            assert not conn.execute(f"SELECT FROM {table} WHERE {name} = 't'").fetchall()


def test_a_tail_that_is_not_signed_needs_a_flag(signed):
    """An archive of the released version may go on after its checkpoint."""
    signed.stores.push("s", push_of(changeset(put("late"))))
    lines = str(signed.folder / "log.jsonl")
    signed.run("export", "s", "-o", lines)
    kept = signed.folder / "kept"
    kept.write_bytes(signed.stores.proofs.checkpoint("s"))
    known = ("--checkpoint", str(kept), "--key", signed.vkey)
    told = signed.run("import", lines, "--space", "t", *known, code=3)
    assert "1 events after seq 300 are not signed" in told.replace("\n", " ")
    assert "not signed" in signed.run("import", lines, "--space", "t", code=3)
    signed.run("import", lines, "--space", "t", "--unsigned", *known)
    assert pull_all(signed.stores, "t") == pull_all(signed.stores, "s")


def test_a_space_is_hidden_until_it_is_whole(signed):
    """Readers, writers, projectors and the signer leave it alone; then it opens at once."""
    stores = signed.stores
    page = stores.range_after("s", RangeQuery(0, 1))
    entries = list(stores.entries("s", through=EVENTS))
    importer = Importer(stores.datastore)
    with importer.into("t", page.log) as imported:
        imported.add(entries[:100])
        for act in (
            lambda: stores.range_after("t", RangeQuery(0, 1)),
            lambda: stores.push("t", push_of(changeset())),
            lambda: stores.record("t", ("tasks", "1"), at_least=0),
            lambda: stores.proofs.tree("t"),
            lambda: stores.proofs.checkpoint("t"),
            lambda: stores.devices("t"),
            lambda: stores.tokens("t"),
            lambda: stores.register("t", "00000000-0000-4000-8000-00000000000a"),
            lambda: stores.collections("t"),
        ):
            with pytest.raises(SpaceImporting):
                act()
        stores.project()
        stores.grow_trees()
    importer = Importer(stores.datastore)  # as after a crash: the same command resumes
    with importer.into("t", page.log) as imported:
        for start in range(0, EVENTS, 70):
            imported.add(entries[start : start + 70])
        imported.finish()
    assert imported.stored == EVENTS - 100
    assert pull_all(stores, "t") == pull_all(stores, "s")
    stores.project()
    assert stores.record("t", ("tasks", "1"), at_least=EVENTS).records


def test_a_resumed_import_compares_what_is_stored(signed):
    """Events of a wrong file that was interrupted never mix with those of a right one."""
    entries = list(signed.stores.entries("s", through=EVENTS))
    log = signed.stores.range_after("s", RangeQuery(0, 1)).log
    other = entries[3].__class__(**{
        name: getattr(entries[3], name) for name in entries[3].__struct_fields__
    } | {"salt": bytes(32)})  # fmt: skip
    with Importer(signed.stores.datastore).into("t", log) as imported:
        imported.add([*entries[:3], other, *entries[4:100]])
    file = str(signed.folder / "log.tar")
    assert "import-conflict" in signed.run("import", file, "--space", "t", code=3)
    signed.run("remove-import", "t", "--yes", "--by", "ada")
    signed.run("import", file, "--space", "t")
    with psycopg.connect(signed.url) as conn:
        rows = conn.execute("SELECT space, log::text, head, why FROM removed_imports").fetchall()
    assert rows == [("t", log, 100, "removed by ada")]


MARKS = [
    "UPDATE spaces SET importing = true WHERE space = 's'",
    "UPDATE spaces SET space = 'x' WHERE space = 's'",
    "UPDATE spaces SET importing = false WHERE space = 't'; "
    "UPDATE spaces SET importing = true WHERE space = 't'",
    "INSERT INTO spaces (space, importing) VALUES ('s', true) "
    "ON CONFLICT (space) DO UPDATE SET importing = true",
    "INSERT INTO spaces (space, head, importing) VALUES ('y', 7, true)",
    "DELETE FROM spaces WHERE space = 's'",
    "DELETE FROM spaces WHERE space = 't'",
    "TRUNCATE spaces",
    "DELETE FROM events WHERE originator_id = 's'",
    "DELETE FROM events",
    "INSERT INTO removed_imports (space, log, head, why) VALUES ('s', gen_random_uuid(), 1, '')",
    "DELETE FROM removed_imports",
]


@pytest.mark.parametrize("who", ["service", "owner"])
@pytest.mark.parametrize("statement", MARKS)
def test_the_mark_is_set_once_and_protects_the_rest(stores, database, cluster, who, statement):
    """Neither role marks a live space, renames it, or deletes its events."""
    stores.push("s", push_of(changeset(), changeset()))
    log = stores.range_after("s", RangeQuery(0, 1)).log
    with Importer(stores.datastore).into("t", log) as imported:
        imported.add(list(stores.entries("s", through=2)))
    if who == "owner" and statement.startswith("INSERT INTO removed"):
        return  # the owner writes that table, as `remove_import` does
    url = database if who == "owner" else as_service(cluster, database)
    with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement)
    assert len(pull_all(stores, "s")) == 2
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT remove_import('s', '')").fetchone() == (None,)
        assert conn.execute("SELECT remove_import('t', '')").fetchone() == (2,)
    assert len(pull_all(stores, "s")) == 2
    with pytest.raises(NotImporting):
        Importer(stores.datastore).remove("t", "again")


@pytest.mark.parametrize("finishes_first", [True, False])
def test_the_removal_and_the_end_of_an_import_wait_for_each_other(stores, database, finishes_first):
    """Either the space is whole, or it is gone with all of its rows."""
    stores.push("s", push_of(changeset(), changeset()))
    log = stores.range_after("s", RangeQuery(0, 1)).log
    importer, outcome = Importer(stores.datastore), []
    with importer.into("t", log) as imported:
        imported.add(list(stores.entries("s", through=2)))

    def act():
        try:
            outcome.append(importer.remove("t", "race") if finishes_first else imported.finish())
        except (NotImporting, ImportConflict) as exc:
            outcome.append(type(exc))

    first = (
        "UPDATE spaces SET importing = false WHERE space = 't'"
        if finishes_first
        else "SELECT remove_import('t', 'race')"
    )
    with psycopg.connect(database) as conn:
        conn.execute(first)
        waiting = threading.Thread(target=act)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "it waits for the lock of the row"
    waiting.join(30)
    assert outcome == [NotImporting if finishes_first else ImportConflict]
    with psycopg.connect(database) as conn:
        left = conn.execute("SELECT FROM events WHERE originator_id = 't'").fetchall()
    assert len(left) == (2 if finishes_first else 0)
