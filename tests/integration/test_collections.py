"""Definitions in the database: cached states, imports, and the table of collections."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from foldlog.domain.collections import KIND, Proposal, definition_of
from foldlog.domain.errors import LimitExceeded, ProjectionBehind, SchemaViolated, VersionConflict
from foldlog.domain.events import decode_event
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.loading import Loader
from foldlog.infrastructure.postgres.service_events import collections
from foldlog.infrastructure.postgres.status import status
from tests.conftest import PostgresStores
from tests.helpers import add, changeset, pull_all, push_of, put
from tests.integration.test_commands import run  # noqa: F401

SCHEMA = {"properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}


def wanted(schema=SCHEMA, **members) -> Proposal:
    return Proposal(JsonSchema.checked(schema, LIMITS), **members)


def pushed(stores, *ops, **members) -> str:
    (answer,) = stores.push("s", push_of(changeset(*ops, **members))).verdicts
    return answer.verdict


@pytest.fixture
def looks(monkeypatch):
    """Counts how often a space was locked and loaded."""
    counted = []
    load = Loader.lock_and_load
    monkeypatch.setattr(Loader, "lock_and_load", lambda *a, **k: counted.append(1) or load(*a, **k))
    return counted


def test_what_certainly_fits_is_appended_without_a_look(stores, looks):
    stores.define("s", "tasks", wanted())
    pushed(stores, put("a", n=1))
    before = len(looks)
    assert pushed(stores, put("b", n=1)) == "stored"
    assert len(looks) == before
    assert pushed(stores, add("b", n=1), base=3) == "stored"
    assert len(looks) == before + 1


def test_nothing_is_refused_on_what_is_kept(stores, datastore):
    """Another process has widened the schema. The cached one would refuse the push."""
    stores.define("s", "tasks", wanted())
    assert pushed(stores, put("a", n=1)) == "stored"
    other = PostgresStores(datastore)
    other.define("s", "tasks", wanted({"required": ["n"]}))
    assert pushed(stores, put("b", n=-1)) == "stored"


def test_nothing_is_stored_on_what_is_kept_once_it_is_old(stores, datastore):
    """Another process has defined the collection. The next push here must fit the schema."""
    assert pushed(stores, put("a", n=1)) == "stored"
    stores.project()
    other = PostgresStores(datastore)
    other.define("s", "tasks", wanted())
    assert pushed(stores, put("b", n=-1)) == "refused"


def test_it_is_decided_on_what_is_not_projected_yet(stores):
    stores.define("s", "tasks", wanted())
    assert pushed(stores, put("a", n=2)) == "stored"
    assert pushed(stores, add("a", n=-2), base=2) == "stored"
    assert pushed(stores, add("a", n=-1), base=3) == "refused"
    stores.project()
    assert pushed(stores, add("a", n=-1), base=3) == "refused"


def test_pushes_of_one_group_see_each_other(stores):
    """Ten at a time take the last of five."""
    stores.define("s", "tasks", wanted())
    pushed(stores, put("a", n=5))
    with ThreadPoolExecutor(10) as threads:
        verdicts = list(threads.map(lambda _: pushed(stores, add("a", n=-1), base=2), range(10)))
    assert sorted(verdicts) == ["refused"] * 5 + ["stored"] * 5


def test_what_cannot_be_decided_now_is_not_decided(datastore):
    """The tail of the log is too long to fold under the lock, so the push shall come again."""
    stores = PostgresStores(datastore, Limits(guard_tail_events_max=1))
    stores.define("s", "tasks", wanted())
    pushed(stores, put("a", n=1))
    with pytest.raises(ProjectionBehind):
        pushed(stores, add("a", n=1))
    assert pushed(stores, put("b", n=1)) == "stored"
    stores.project()
    assert pushed(stores, add("a", n=1), base=2) == "stored"


def test_what_was_written_while_the_records_were_looked_through_is_looked_at(stores, monkeypatch):
    """The first check takes no lock. Later records are checked under the lock."""
    pushed(stores, put("a", n=1))
    stores.project()
    look = collections.Collections._check_stored

    def look_and_be_late(self, *arguments):
        found = look(self, *arguments)
        pushed(stores, put("b", n=-1))
        return found

    monkeypatch.setattr(collections.Collections, "_check_stored", look_and_be_late)
    with pytest.raises(SchemaViolated) as refused:
        stores.define("s", "tasks", wanted())
    assert refused.value.extra["first"][0]["id"] == "b"
    assert stores.range_after("s", RangeQuery(0, 1)).head == 2


def test_of_two_definitions_at_once_one_is_told(stores, monkeypatch):
    """The second one was decided on a version that has been replaced."""
    look = collections.Collections._check_stored

    def look_and_be_late(self, space, plan, *arguments):
        monkeypatch.setattr(collections.Collections, "_check_stored", look)
        stores.define("s", "tasks", wanted({}))
        return look(self, space, plan, *arguments)

    monkeypatch.setattr(collections.Collections, "_check_stored", look_and_be_late)
    with pytest.raises(VersionConflict) as refused:
        stores.define("s", "tasks", wanted())
    assert refused.value.extra == {"version": 1}
    assert len(stores.collection("s", "tasks")[1]) == 1


def test_a_look_ends_in_time(stores, monkeypatch):
    """Then a definition is refused, a dry run says that it is incomplete, and `force` goes on."""
    monkeypatch.setattr(collections, "PAGE_RECORDS", 2)
    pushed(stores, *(put(str(n), n=n) for n in range(5)))
    stores.project()
    dry = stores.define("s", "tasks", wanted(is_dry_run=True), seconds_max=0)
    assert (dry.check.checked, dry.check.is_complete) == (1, False)
    with pytest.raises(LimitExceeded):
        stores.define("s", "tasks", wanted(), seconds_max=0)
    whole = stores.define("s", "tasks", wanted(is_dry_run=True))
    assert (whole.check.checked, whole.check.violating, whole.check.is_complete) == (5, 0, True)
    assert stores.define("s", "tasks", wanted(force=True), seconds_max=0).version == 1


def rows(database, space) -> list[tuple]:
    with psycopg.connect(database) as conn:
        return conn.execute(
            "SELECT collection, version, seq, digest, schema::text, defined_at, defined_by, "
            "is_forced FROM collections WHERE space = %s ORDER BY collection, version",
            (space,),
        ).fetchall()


def test_an_import_brings_the_definitions(stores, run, database, tmp_path):  # noqa: F811
    """The same rows, decisions and versions follow from it, also over several batches."""
    stores.define("s", "tasks", wanted(by="ada"))
    for n in range(3):
        pushed(stores, *(put(str(m), "tasks", n=n) for m in range(300)))
    for n in range(600):
        pushed(stores, put(str(n), "others", n=n))
    stores.project()
    stores.define("s", "tasks", wanted({"properties": {"n": {"minimum": 5}}}, force=True))
    file = str(tmp_path / "log.jsonl.gz")
    run("export", "s", "-o", file)
    run("import", file, "--space", "t", "--unsigned")
    stores.project()

    assert rows(database, "t") == rows(database, "s") and len(rows(database, "t")) == 2
    for space in "st":
        for op, verdict in ((put("x", n=5), "stored"), (put("x", n=4), "refused")):
            (answer,) = stores.push(space, push_of(changeset(op))).verdicts
            assert answer.verdict == verdict
        assert stores.define(space, "tasks", wanted({})).version == 3


def test_the_table_is_what_the_log_says(stores, database):
    """The table can be rebuilt, because every row follows from its event."""
    stores.define("s", "tasks", wanted(by="ada"))
    stores.define("s", "tasks", wanted({"title": "ä \0"}))
    stores.define("s", "notes", wanted({}, force=True))
    told = [definition_of(e) for e in map(decode_event, pull_all(stores, "s")) if e.kind == KIND]
    assert [(d.collection, d.version, d.seq) for d in told] == [
        ("tasks", 1, 1),
        ("tasks", 2, 2),
        ("notes", 1, 3),
    ]
    for definition in told:
        assert stores.collection("s", definition.collection, definition.version)[0] == definition


def test_an_event_of_a_newer_form_stops_its_own_space_alone(database, stores):
    """`status` says why the space is halted, and other spaces go on."""
    for space in "st":
        stores.push(space, push_of(changeset(put("a", n=1))))
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO events SELECT originator_id, 2, 'changeset/2', state, gen_random_uuid(), "
            "device, received_at_ms, collections, salt, ops_hash FROM events "
            "WHERE originator_id = 's'"
        )
        conn.execute("UPDATE spaces SET head = 2 WHERE space = 's'")
    stores.project()
    stopped, fine = status(stores.datastore, "s")[0], status(stores.datastore, "t")[0]
    assert (stopped.position, stopped.stopped_at) == (1, 2)
    assert "changeset/2" in stopped.stopped_why and "newer version" in stopped.stopped_why
    assert (fine.position, fine.stopped_at) == (1, None)


# -- The commands ------------------------------------------------------------------------------


def test_define_and_list(stores, run, tmp_path):  # noqa: F811
    """The command lists the violations, with exit code 1, and the definition stays as it was."""
    pushed(stores, put("a", n=1), put("b", n="x"))
    stores.project()
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    define = ("define", "s", "tasks", str(file))

    for more in ((), ("--dry-run",)):
        told = run(*define, *more, code=1).output
        assert 'does not fit: b at /n: does not fit type "integer"' in told
        assert "1 of 2 stored records do not fit" in told
    assert run("collections", "s", "--json").stdout == ""
    assert "tasks, version 1: seq 2" in run(*define, "--force", "--by", "ada").stdout
    assert "tasks, version 1: seq 2" in run(*define).stdout  # again: the same

    file.write_text(json.dumps({**SCHEMA, "required": ["n", "m"]}))
    refused = run(*define, code=1)
    assert "not additive: /required requires m" in refused.stdout
    assert "schema-not-additive" in refused.stderr
    assert "version-conflict" in run(*define, "--if-version", "7", code=3).stderr

    table = run("collections", "s").stdout.split()
    assert table[table.index("tasks") :][:4] == ["tasks", "1", "(forced)", "2"]
    assert table[-1] == "ada"
    (line,) = run("collections", "s", "--json").stdout.splitlines()
    assert json.loads(line)["schema"] == SCHEMA


@pytest.mark.parametrize("text", ["{", '{"typ": 1}', "[]"])
def test_a_file_that_is_no_schema(run, tmp_path, text):  # noqa: F811
    file = tmp_path / "schema.json"
    file.write_text(text)
    assert "invalid-schema" in run("define", "s", "tasks", str(file), code=3).stderr


def test_a_name_that_no_collection_can_have(run, tmp_path):  # noqa: F811
    file = tmp_path / "schema.json"
    file.write_text("{}")
    assert "invalid-request" in run("define", "s", "a/b", str(file), code=3).stderr
