"""The trigger on the log's rows: it lets a correct erasure pass and refuses all other changes."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.sql import SQL

from foldlog.domain import proofs
from foldlog.domain.erasure import erase_keys
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from tests.conftest import PostgresStores
from tests.helpers import changeset, new_id, push_of, put

R, S = ("tasks", "r"), ("tasks", "s")
CALL = "SELECT erase_operations('s', %s, %s, %s)"


@pytest.fixture
def urls(database_urls):
    """A log in which record `r` was erased and then created anew. `s` was never erased."""
    with Datastore(database_urls[0]) as datastore:
        stores = PostgresStores(datastore)
        stores.push("s", push_of(changeset(put("r", x=1), put("s", x=1))))
        stores.erase("s", [R], reason="asked to")
        stores.push("s", push_of(changeset(put("r", x=2), put("s", x=2), base=2)))
        stores.push("s", push_of(changeset(put("t", x=2), put("r", x=3), base=2)))
    return database_urls


def rows(url):
    with psycopg.connect(url) as conn:
        return conn.execute(
            "SELECT originator_version, state, salt, ops_hash FROM events ORDER BY 1"
        ).fetchall()


def announce(conn, seq=5, key=R, topic="record-erased/1"):
    """Takes the steps of an erasure before it changes a row: its event, and the row in
    `erasures`.
    """
    body = psycopg.types.json.Json({"body": {"collection": key[0], "id": key[1]}})
    conn.execute(
        "INSERT INTO events (originator_id, originator_version, topic, state, event_id, "
        "received_at_ms, salt, ops_hash) VALUES ('s', %s, %s, %s::text::bytea, %s, 0, '', '')",
        (seq, topic, body, new_id()),
    )
    note(conn, seq, key)


def note(conn, seq, key=R):
    conn.execute(
        "INSERT INTO erasures VALUES ('s', %s, %s, %s) ON CONFLICT (space, collection, id) "
        "DO UPDATE SET seq = excluded.seq",
        (*key, seq),
    )


def erased(url, seq, key=R):
    _, state, salt, _ = rows(url)[seq - 1]
    return erase_keys(state, salt, {key})


def test_a_whole_erasure_passes(urls):
    """The other tests leave out one step each."""
    state, salt = erased(urls[0], 3)
    with psycopg.connect(urls[0]) as conn:
        announce(conn)
        assert conn.execute(CALL, ([3], [state], [salt])).fetchall() == [(3,)]


def tampered(state: bytes, salt: bytes):
    """Returns {the fault: the bytes}."""
    at = state.index(b',"erased":"') + len(b',"erased":"')
    own = salt[1:33] if salt[1:33] != bytes(32) else salt[33:65]
    return {
        "another header": (state.replace(b'"base":2', b'"base":1'), salt),
        "another value": (state.replace(b'{"x":2}', b'{"x":7}'), salt),
        "a commitment of its own": (state[:at] + b"0" * 64 + state[at + 64 :], salt),
        "a value left": (state.replace(b',"erased"', b',"x":1,"erased"'), salt),
        "another operation": (state.replace(b'{"op":"put"', b'{"op":"add"', 1), salt),
        "another record": (state.replace(b'"id":"r"', b'"id":"q"'), salt),
        "a space": (state.replace(b',"ops":[', b',"ops":[ '), salt),
        "one operation more": (state[:-2] + b',{"op":"delete"}]}', salt + bytes(32)),
        "one less": (state[: state.index(b"[") + 1] + b"]}", salt[:1]),
        "no ops": (proofs.header_of(state) + b',"body":1}', salt),
        "not JSON": (state[:-1], salt),
        "not UTF-8": (state.replace(b'{"x":2}', b'{"x":"\xff"}'), salt),
        "a salt of the erased one": (state, salt.replace(bytes(32), b"\1" * 32)),
        "a lost salt": (state, salt.replace(own, bytes(32))),
        "a wrong salt": (state, salt.replace(own, b"\1" * 32)),
        "another tag": (state, b"\2" + salt[1:]),
        "the salt as it was": (state, salt[:32]),
        "no salt": (state, b""),
    }


NAMES = list(tampered(b'{"seq":3,"ops":[{"id":"r","erased":""}]}', bytes([1]) + bytes(range(64))))


@pytest.mark.parametrize("seq", [3, 4])
@pytest.mark.parametrize("wrong", NAMES)
def test_other_bytes_are_refused(urls, wrong, seq):
    """Even in an otherwise correct erasure, and even by a superuser."""
    before = rows(urls[0])
    made = erased(urls[0], seq)
    state, salt = tampered(*made)[wrong]
    assert (state, salt) != made
    for url in urls:
        with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            announce(conn)
            conn.execute(CALL, ([seq], [state], [salt]))
        with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            announce(conn)
            conn.execute(
                "UPDATE events SET state = %s, salt = %s WHERE originator_version = %s",
                (state, salt, seq),
            )
    assert rows(urls[0]) == before


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda conn: None, id="the erasure is older than the event"),
        pytest.param(lambda conn: note(conn, 5), id="no such event"),
        pytest.param(lambda conn: note(conn, 4), id="an event of another kind"),
        pytest.param(lambda conn: announce(conn, key=S), id="of another record"),
        pytest.param(
            lambda conn: (announce(conn, key=S), note(conn, 5)), id="noted, but of another record"
        ),
        pytest.param(lambda conn: announce(conn, topic="changeset/1"), id="of another topic"),
        pytest.param(
            lambda conn: conn.execute("SET foldlog.erasing = 'on'"), id="a variable set by hand"
        ),
    ],
)
def test_no_event_says_so(urls, prepare):
    """The log itself must have an event of the erasure."""
    before = rows(urls[0])
    state, salt = erased(urls[0], 3)
    for url in urls:
        with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            prepare(conn)
            conn.execute(CALL, ([3], [state], [salt]))
    assert rows(urls[0]) == before


def test_what_is_erased_stays_so(urls):
    """Erased values cannot be restored, and the remaining ones cannot change."""
    _, state, salt, _ = rows(urls[0])[0]
    for wrong in (
        state.replace(b'"erased":"', b'"erased":"f')[: len(state)],
        state.replace(b'{"x":1}', b"{}"),
        state,
    ):
        with psycopg.connect(urls[1]) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            announce(conn)
            conn.execute(CALL, ([1], [wrong], [salt]))


def test_no_other_column_changes_with_it(urls):
    state, salt = erased(urls[0], 3)
    for column in ("topic = 'x/1'", "device = NULL", "received_at_ms = 0", "collections = '{}'"):
        with psycopg.connect(urls[1]) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            announce(conn)
            conn.execute(
                SQL(
                    "UPDATE events SET state = %s, salt = %s, {} WHERE originator_version = 3"
                ).format(SQL(column)),
                (state, salt),
            )


def test_a_body_cannot_be_erased(urls):
    _, state, salt, _ = rows(urls[0])[1]
    with psycopg.connect(urls[1]) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        announce(conn)
        conn.execute(CALL, ([2], [state.replace(b"asked to", b"because")], [salt]))


def test_a_role_without_the_right_is_refused(urls):
    """The owner of the function decides which role may call it."""
    state, salt = erased(urls[0], 3)
    with psycopg.connect(urls[1]) as conn:
        announce(conn)
        conn.execute("CREATE ROLE reader_of_logs")
        conn.execute("GRANT SELECT ON events, erasures TO reader_of_logs")
        conn.execute("SET ROLE reader_of_logs")
        for statement in (
            "SELECT erase_operations('s', '{3}', '{}', '{}')",
            "UPDATE events SET state = ''",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
                conn.execute(statement)
        conn.execute("RESET ROLE")
        conn.execute("GRANT EXECUTE ON FUNCTION erase_operations TO reader_of_logs")
        conn.execute("SET ROLE reader_of_logs")
        assert conn.execute(CALL, ([3], [state], [salt])).fetchall() == [(3,)]
        conn.rollback()


def test_no_search_path_leads_it_astray(urls):
    """The function ignores tables and functions of the same names in other schemas."""
    state, salt = erased(urls[0], 3)
    with psycopg.connect(urls[1]) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("CREATE TEMP TABLE erasures (LIKE public.erasures)")
        conn.execute("INSERT INTO pg_temp.erasures VALUES ('s', 'tasks', 'r', 5)")
        conn.execute(
            "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'"
        )
        conn.execute("SET search_path = pg_temp, public, pg_catalog")
        conn.execute("SELECT public.erase_operations('s', %s, %s, %s)", ([3], [state], [salt]))


def test_not_even_with_triggers_off_for_a_replica(urls):
    with psycopg.connect(urls[1]) as conn:
        conn.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("UPDATE events SET state = ''")
