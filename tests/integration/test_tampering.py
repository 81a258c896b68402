"""`foldlog verify` finds every change of the database, or the column is on a short list.

The changes are generated from the catalogue of the database: each column of each table is changed
in several ways, rows are deleted and copied, and each table is emptied. So a new column fails here
until `verify` compares it, or until it is listed below with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest

from foldlog.domain.access import Grant, Role
from foldlog.domain.audit import WrongEvent
from foldlog.domain.collections import Proposal
from foldlog.domain.errors import OperatorError, UnknownSpace
from foldlog.domain.json_schema import JsonSchema
from foldlog.infrastructure.postgres.audit.snapshot import Snapshot
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.projections import projection_named
from foldlog.infrastructure.postgres.rebuild import rebuild as rebuild_module
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.signing.keys import make_keys, read_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.scripts.verification.claims import Wrong
from foldlog.scripts.verification.database_source import DatabaseSource
from foldlog.scripts.verification.run import Verification
from tests.helpers import A, B, C, a_token, changeset, new_id, push_of, put
from tests.integration.test_projector import random_history

#: Columns that no reader and no decision depends on, or that the log cannot prove, each with the
#: reason. docs/explanation/proofs.md has the same list.
UNPROVEN = {
    "devices.last_seen_ms": "the time of the last contact is no event; it is only shown",
    "projections.fold_version": "another version is told as 'not compared'; it asks for a rebuild",
    "projections.has_history": "a table without history is told as 'not compared'",
    "projections.has_older_rows": "a table in an older form is told as 'not compared'",
    "projections.stopped_at": "told as halted; the projector tries again",
    "projections.stopped_why": "the text of an error",
    "projections.stopped_until": "the time of the next attempt",
    "projections.failing_why": "the text of an error",
    "projections.failing_since": "the time of an error",
    "spaces.event_bytes_max": "may be larger after an erasure, which costs time only; see below",
    "checkpoints.signed_at": "the time of the last publication; it is only shown",
    "spaces.alarm": "an alarm of missing events; verify compares the events themselves",
    "spaces.alarm_since": "the time of the alarm",
    "spaces.importing": "a trigger refuses to set it; an import that is marked is hidden",
    "checkpoints.alarm": "the signer's own alarm",
    "checkpoints.alarm_detail": "the text of the alarm",
    "checkpoints.alarm_since": "the time of the alarm",
    "checkpoints.alarm_raised_by": "the folder of that signer",
}
#: The beginnings of statements that leave a right database behind, each with the reason.
HARMLESS = {
    "UPDATE projections SET position = position - 1": "a lag, if that event changes no row",
    "DELETE FROM tokens": "a token without its row gives no access, as after an import; it is told",
}
#: Tables that describe the database instead of a space.
OF_THE_DATABASE = {"schema_migrations", "signers"}
SPACE_COLUMN = {"events": "originator_id"}

SELECT_TABLES = """
SELECT table_name, column_name, udt_name, is_nullable = 'YES'
  FROM information_schema.columns
  JOIN information_schema.tables
 USING (table_schema, table_name)
 WHERE table_schema = current_schema()
   AND table_type = 'BASE TABLE'
 ORDER BY table_name, ordinal_position
"""


class Column(NamedTuple):
    table: str
    name: str
    type: str
    is_nullable: bool

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


#: for each type: the expressions that change a value, and one that replaces NULL
CHANGES = {
    "int8": (["{} + 1", "{} - 1"], "1"),
    "int4": (["{} + 1", "{} - 1"], "1"),
    "text": (["{} || 'x'", "''"], "'x'"),
    "uuid": (["'77777777-7777-4777-8777-777777777777'"], "'77777777-7777-4777-8777-777777777777'"),
    "bool": (["NOT {}"], "true"),
    "bytea": (
        [
            "set_byte({}, 0, 255 - get_byte({}, 0))",
            "set_byte({}, octet_length({}) - 1, 255 - get_byte({}, octet_length({}) - 1))",
            "substr({}, 1, octet_length({}) - 1)",
            "{} || '\\x00'",
        ],
        "'\\x00'",
    ),
    "json": (["'{\"tampered\": 1}'", "'[]'"], "'[1, null, 2, 0]'"),
    "timestamptz": (["{} + interval '1 s'"], "now()"),
    "_text": (["{} || ARRAY['zz']", "ARRAY[]::text[]", "NULL"], "'{zz}'"),
}


class Rich:
    """A signed space with rows in every table, and an unfinished rebuild of both projections."""

    def __init__(self, url: str, stores, folder, monkeypatch):
        self.url, self.stores, self.folder = url, stores, folder
        self._fill()
        self.stores.project()
        self.stores.grow_trees()
        self._begin_rebuilds(monkeypatch)
        make_keys(folder / "keys")
        CheckpointSigner(
            stores.proofs, keys=folder / "keys", last=folder / "last", origin="foldlog.local"
        ).sign_all()
        log = stores.proofs.tree("s").log
        self.keys = read_keys(folder / "keys").verifiers(f"foldlog.local/spaces/s/{log}")

    def _fill(self) -> None:
        stores = self.stores
        random_history(stores, "s", seed=3, pushes=40)
        stores.register("s", B, name="tablet", by="ada")
        stores.register("s", C, name="phone")
        token = stores.grant("s", new_id(), a_token()[1], Grant(role=Role.READER, name="n"), "ada")
        stores.grant("s", new_id(), a_token()[1], Grant(role=Role.DEVICE, device=A), None)
        expiring = Grant(role=Role.ADMIN, expires_at=4_000_000_000_000)
        stores.grant("s", new_id(), a_token()[1], expiring, None)
        stores.grant("", new_id(), a_token()[1], Grant(role=Role.ADMIN), "root")
        stores.revoke_token("s", token.id, reason="lost", by="ada")
        stores.revoke_device("s", C, reason="stolen", by="ada")
        for schema in ({"properties": {"n": {"type": "integer"}}}, {"properties": {"n": {}}}):
            stores.define("s", "numbers", Proposal(JsonSchema(schema), by="ada"))
        for counter in (1, 2):
            one = changeset(put(f"c{counter}", n=counter, text="x" * 1_100), counter=counter)
            stores.push("s", push_of(one, device=B))
        stores.project()
        head = stores.push("s", push_of(changeset(put("skipped", n=1)))).head
        with psycopg.connect(self.url) as conn:
            conn.execute(
                "UPDATE projections SET stopped_at = %s WHERE projection = 'master'", [head]
            )
        stores.skip("s", head, reason="told to", by="ada")
        stores.project()
        stores.erase("s", [("tasks", "a")], reason="asked to")
        stores.push("s", push_of(*[changeset(put(str(n), n=n)) for n in range(300)]))

    def _begin_rebuilds(self, monkeypatch) -> None:
        class Killed(BaseException):
            pass

        def die(_, position, __):
            if position > 25:
                raise Killed

        monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 5)
        for projection in (MasterProjection(), projection_named("proofs")):
            with pytest.raises(Killed):
                Rebuilder(self.stores.datastore, projection, report=die, batch_events=30).rebuild(
                    "s"
                )

    def verify(self, conn) -> list[str]:
        """Verifies the space as this transaction sees it."""
        source = DatabaseSource(Snapshot(conn, "s"), [])
        verification = Verification(source, keys=self.keys)
        verification.verify(lambda seq: None)
        return verification.findings

    def what_is_wrong(self, conn) -> str | None:
        try:
            self.verify(conn)
        except (Wrong, WrongEvent, OperatorError, UnknownSpace) as exc:
            return str(exc)
        return None


@pytest.fixture
def rich(database, stores, tmp_path, monkeypatch):
    return Rich(database, stores, tmp_path, monkeypatch)


def columns_of(conn) -> list[Column]:
    found = [Column(*row) for row in conn.execute(SELECT_TABLES).fetchall()]
    return [column for column in found if column.table not in OF_THE_DATABASE]


def rows_of(conn, table: str, condition: str, count: int) -> list[str]:
    """The places of a few rows of the space that fulfil a condition."""
    space = SPACE_COLUMN.get(table, "space")
    found = conn.execute(
        f"SELECT ctid::text FROM {table} WHERE {space} = 's' AND {condition} ORDER BY ctid"
    ).fetchall()
    chosen = random.Random(table + condition).sample(found, min(count, len(found)))
    return [ctid for (ctid,) in chosen]


def updates_of(conn, column: Column, rows: int, changes: int) -> Iterator[str]:
    """Yields statements that change this column of some rows, in some ways each."""
    name = column.name
    ways, instead_of_null = CHANGES[column.type]
    wanted = [(f"{name} IS NOT NULL", ways[:changes])]
    if column.is_nullable:
        wanted += [(f"{name} IS NULL", [instead_of_null]), (f"{name} IS NOT NULL", ["NULL"])]
    for condition, values in wanted:
        for ctid in rows_of(conn, column.table, condition, rows):
            for value in values:
                new = value.replace("{}", name)
                yield f"UPDATE {column.table} SET {name} = {new} WHERE ctid = '{ctid}'"


def deletes_of(conn, table: str, rows: int) -> Iterator[str]:
    yield f"DELETE FROM {table} WHERE {SPACE_COLUMN.get(table, 'space')} = 's'"
    for ctid in rows_of(conn, table, "true", rows):
        yield f"DELETE FROM {table} WHERE ctid = '{ctid}'"


def copies_of(conn, columns: list[Column], rows: int) -> Iterator[str]:
    """Yields statements that insert a copy of a row under another key."""
    table = columns[0].table
    space = SPACE_COLUMN.get(table, "space")
    for changed in columns:
        if changed.name == space or changed.type not in ("int8", "int4", "text", "uuid"):
            continue
        values = ", ".join(
            CHANGES[c.type][0][0].replace("{}", c.name) if c == changed else c.name for c in columns
        )
        for ctid in rows_of(conn, table, "true", rows):
            yield f"INSERT INTO {table} SELECT {values} FROM {table} WHERE ctid = '{ctid}'"


def silent_ones(rich: Rich, statements_of, is_unproven) -> list[str]:
    """Runs each statement in a transaction of its own. Returns those that `verify` overlooks."""
    silent, tried = [], 0
    with psycopg.connect(rich.url) as conn:
        for table in ("events", "tokens", "devices", "spaces"):
            conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        conn.execute("GRANT ALL ON events TO CURRENT_USER")
        conn.commit()
        statements = list(statements_of(conn))
        for statement in statements:
            conn.rollback()
            try:
                if conn.execute(statement).rowcount == 0:
                    continue
            except psycopg.Error:
                continue  # a constraint of the database refuses it
            tried += 1
            if rich.what_is_wrong(conn) is None and not is_unproven(statement):
                silent.append(statement)
        conn.rollback()
        rich.verify(conn)
    assert tried > len(statements) / 3, "most statements must be possible"
    return silent


def is_unproven(statement: str) -> bool:
    words = statement.split()
    is_listed = words[0] == "UPDATE" and f"{words[1]}.{words[3]}" in UNPROVEN
    return is_listed or is_harmless(statement)


def is_harmless(statement: str) -> bool:
    return any(statement.startswith(start) for start in HARMLESS)


@pytest.mark.parametrize(("rows", "changes"), [(1, 1), pytest.param(5, 9, marks=pytest.mark.slow)])
@pytest.mark.seconds(40)
def test_every_column_is_compared(rich, rows, changes):
    """A change of any column of any table is found, or the column is listed."""

    def statements(conn):
        for column in columns_of(conn):
            yield from updates_of(conn, column, rows, changes)

    silent = silent_ones(rich, statements, is_unproven)
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize("rows", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.seconds(40)
def test_every_row_is_missed_and_every_further_row_is_noticed(rich, rows):
    """Rows of every table are deleted, and inserted once more under another key."""

    def statements(conn):
        columns = columns_of(conn)
        for table in sorted({column.table for column in columns}):
            yield from deletes_of(conn, table, rows)
            yield from copies_of(conn, [c for c in columns if c.table == table], rows)

    silent = silent_ones(rich, statements, is_harmless)
    assert not silent, "\n".join(silent)


def test_the_list_of_unproven_columns_is_of_columns(rich):
    """A column that is compared, or gone, leaves the list."""
    with psycopg.connect(rich.url) as conn:
        assert UNPROVEN.keys() <= {str(column) for column in columns_of(conn)}


@pytest.mark.parametrize("value", ["0", "event_bytes_max - 1"])
def test_a_limit_of_pages_that_is_too_small_is_found(rich, value):
    """Pages of the log trust the size of the largest event."""
    with psycopg.connect(rich.url) as conn:
        conn.execute(f"UPDATE spaces SET event_bytes_max = {value}")
        assert "spaces: event_bytes_max is" in (rich.what_is_wrong(conn) or "")
        conn.rollback()


@pytest.mark.parametrize("projection", ["master", "proofs"])
def test_a_position_that_moved_back_is_found(rich, projection):
    """The last event has an effect, so the rows are ahead of the position."""
    with psycopg.connect(rich.url) as conn:
        conn.execute(
            "UPDATE projections SET position = position - 1 WHERE is_live AND projection = %s",
            [projection],
        )
        assert rich.what_is_wrong(conn) is not None
        conn.rollback()
