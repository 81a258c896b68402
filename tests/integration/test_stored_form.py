"""The stored form of fold version 3: large values in the log, large records in parts."""

from __future__ import annotations

import re
from collections import defaultdict
from json import loads
from pathlib import Path

import psycopg
import pytest
from msgspec.json import decode

from foldlog.domain import merge
from foldlog.domain.history import NOW
from foldlog.domain.limits import LIMITS
from foldlog.domain.ports import AsOfQuery, RecordsQuery
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.projections import VERSIONS
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.status import status
from tests.helpers import changeset, push_of, put

TEXT = Path(__file__).with_name("fold_version_2.sql").read_text("utf-8")
OLD_STATEMENTS = dict(re.findall(r"-- (foldlog\S+)\n(.*?)(?=\n-- foldlog|\Z)", TEXT, re.DOTALL))
#: a part of a text that no other value has
SECRET = "a secret that stands in a large value"
LARGE = SECRET + "x" * 3_000_000


def test_a_service_of_the_version_before_cannot_read_the_new_form(stores, datastore):
    """Its statements fail, so it never takes a part of a record for the whole record. It also
    never projects, because the fold version of every space is another one."""
    stores.push("s", push_of(changeset(put("r", text=LARGE))))
    stores.project()
    assert len(OLD_STATEMENTS) == 12
    for statement in OLD_STATEMENTS.values():
        with datastore.rows() as cursor, pytest.raises(psycopg.errors.UndefinedColumn):
            cursor.execute(statement, defaultdict(lambda: None))
    assert VERSIONS["master"] == 3


def test_a_rebuild_by_another_process_makes_the_same_rows(stores, datastore):
    """The order of a set differs between processes; that of the places of large values does not."""
    stores.push("s", push_of(changeset(put("r", **{f"f{n}": n for n in range(100)}))))
    names = [f"large{n}" for n in range(20)]
    stores.push("s", push_of(changeset(put("r", **dict.fromkeys(names, "x" * 3_000)))))
    stores.project()
    with datastore.rows() as cursor:
        [(apart,)] = cursor.execute("SELECT apart::text FROM versions WHERE seq = 2").fetchall()
    assert list(loads(apart)["logged"]) == sorted(names)
    assert {s.fold_version for s in status(datastore) if s.projection == "master"} == {3}


def test_a_record_grown_until_it_is_refused_never_stops_its_space(stores):
    """Each put adds 3 MB. The fifth one exceeds the limit, and is in the ledger."""
    for n in range(8):
        head = stores.push("s", push_of(changeset(put("r", **{f"f{n}": LARGE})))).head
    small = stores.push("s", push_of(changeset(put("r", done=True, f0="short")))).head
    stores.project()

    [line] = [s for s in status(stores.datastore) if s.projection == "master"]
    assert (line.position, line.stopped_at) == (small, None) and small == head + 1
    [record] = stores.record("s", ("tasks", "r")).records
    fields = decode(record)["fields"]
    assert sorted(fields) == ["done", "f0", "f1", "f2", "f3", "f4"]
    ledger, cursor = [], None
    while True:
        page = stores.conflicts("s", limit=10, cursor=cursor)
        ledger += map(loads, page.conflicts)
        if (cursor := page.cursor) is None:
            break
    assert [(c["seq"], c["field"], c["rule"], c["won"]["seq"]) for c in ledger] == [
        (seq, f"f{seq - 1}", "too-large", 0) for seq in (6, 7, 8)
    ]
    assert all(c["lost"]["value"] == LARGE for c in ledger)
    Rebuilder(stores.datastore, MasterProjection()).rebuild("s", verify=True)


def test_a_record_that_is_larger_already_goes_on(stores, monkeypatch):
    """An older version folded it. It may keep its size or shrink, and other edits go into the
    ledger; the space goes on."""
    monkeypatch.setattr(merge, "RECORD_SIZE_MAX", 10**9)
    for n in range(7):
        stores.push("s", push_of(changeset(put("r", done=False, **{f"f{n}": LARGE}))))
    stores.project()
    monkeypatch.setattr(merge, "RECORD_SIZE_MAX", LIMITS.record_size_max)
    stores.push("s", push_of(changeset(put("r", done=True)), changeset(put("r", more=1))))
    stores.push("s", push_of(changeset({**put("r"), "unset": ["f0"]})))
    head = stores.push("s", push_of(changeset(put("other", n=1)))).head
    stores.project()
    page = stores.record("s", ("tasks", "r"), at_least=head)
    fields = decode(page.records[0])["fields"]
    assert sorted(fields) == ["done", *(f"f{n}" for n in range(1, 7))] and fields["done"] is True


@pytest.mark.parametrize("kind", ["of the record", "in a conflict", "in parts"])
def test_an_erased_value_is_in_no_table(stores, database, kind):
    """The value was stored in the log alone, in a conflict, or in parts of a record. Another record
    in the same event, with the same value, stays as it is."""
    fields = {"text": LARGE[:5_000]}
    if kind == "in parts":
        fields = {f"f{n}": f"{SECRET} {n}" for n in range(90)}
    stores.push("s", push_of(changeset(put("r", **fields), put("keep", n=1))))
    if kind == "in a conflict":
        stores.push("s", push_of(changeset(put("r", text="other" * 900), base=0)))
    stores.push("s", push_of(changeset(put("r", title="t"))))
    stores.project()
    Rebuilder(stores.datastore, MasterProjection()).rebuild("s", verify=True)
    assert SECRET in dump(database)

    stores.erase("s", [("tasks", "r")], reason="asked")
    stores.project()

    assert SECRET not in dump(database)
    assert decode(stores.record("s", ("tasks", "keep")).records[0])["fields"]
    Rebuilder(stores.datastore, MasterProjection()).rebuild("s", verify=True)
    assert SECRET not in dump(database)


def dump(url: str) -> str:
    """All rows of all tables as text. Binary columns are decoded."""
    with psycopg.connect(url) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [name for (name,) in tables.fetchall()]
        texts = [conn.execute(f'SELECT t::text FROM "{name}" t').fetchall() for name in names]
    text = "\n".join(row for rows in texts for (row,) in rows)
    in_hex = re.findall(r"\\x((?:[0-9a-f]{2})+)", text)
    return text + "\n".join(bytes.fromhex(part).decode("latin-1") for part in in_hex)


def test_a_page_of_the_past_has_large_values(stores):
    """A page ends where its values exceed the limit of bytes, and the next one goes on."""
    ids = [f"r{n}" for n in range(6)]
    for id in ids:
        stores.push("s", push_of(changeset(put(id, text=LARGE))))
    head = stores.push("s", push_of(changeset(*(put(id, flag=True) for id in ids)))).head
    stores.project()
    for ask in (
        lambda cursor: stores.as_of("s", AsOfQuery(NOW, 10, cursor=cursor)),
        lambda cursor: stores.page("s", RecordsQuery(10, cursor=cursor, at_least=head)),
    ):
        found, cursor, pages = [], None, 0
        while True:
            page = ask(cursor)
            found += [decode(record) for record in page.records]
            pages += 1
            if (cursor := page.cursor) is None:
                break
        assert [record["id"] for record in found] == ids and pages > 1
        assert all(r["fields"] == {"text": LARGE, "flag": True} for r in found)
