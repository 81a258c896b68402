"""A read of the master table has what was acknowledged before it, to any device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from msgspec.json import decode

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.domain.limits import Limits
from foldlog.domain.merge import FOLD_VERSION
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from tests.asgi_client import asgi_client
from tests.helpers import B, changeset, push_of, put, until
from tests.integration.test_projector import poison

#: the reads that wait for the head
READS = [
    "records",
    "records?changed_after=1",
    "records?collection=tasks&id=x",
    "records/tasks/x",
    "conflicts",
    "history/tasks/x",
    "history?collection=tasks&id=x",
    "snapshot",
]
PAST = ["records?as_of=1", "records/tasks/old?as_of=1", "diff?from=0&to=1"]


class CountedTable(PostgresMasterTable):
    """Counts its statements, and the looks of the reads that wait."""

    pages = looks = 0

    def _select(self, *args, **kwargs):
        self.pages += 1
        return super()._select(*args, **kwargs)

    def position(self, space):
        self.looks += 1
        return super().position(space)


@pytest.fixture
def master(datastore):
    return CountedTable(datastore)


@pytest.fixture
def space(stores):
    """Makes a space whose second event is yet to be projected, and which makes `tasks/x`."""
    stores.push("s", push_of(changeset(put("old", n=1))))
    stores.project()
    stores.push("s", push_of(changeset(put("x", n=1)), device=B))
    return "s"


@pytest.fixture
def http_with(stores, master):
    def make(seconds: int):
        limits = Limits(head_wait_seconds_max=seconds)
        app = create_app(
            store=stores.log, master=master, ready=dict, access=OpenAccess(), limits=limits
        )
        return asgi_client(app)

    return make


def projected(answer) -> int:
    assert answer.status_code == 200, answer.text
    document = decode(answer.text.splitlines()[0])
    return document["seq" if "seq" in document else "projected"]


def test_a_read_waits_for_what_was_acknowledged(http_with, master, space, stores):
    """Also a record that the master table lacks is no 404, and the head itself is the bar."""
    http = http_with(60)
    with ThreadPoolExecutor(len(READS)) as threads:
        asked = [threads.submit(http.get, f"/v1/spaces/{space}/{read}") for read in READS]
        until(lambda: master.pages >= len(READS) and master.looks)
        assert not any(future.done() for future in asked)
        stores.project()
        assert [projected(future.result()) for future in asked] == [2] * len(READS)


def test_a_table_at_rest_costs_no_more_statements(http_with, master, space, stores):
    """The page, its head and its position are one statement."""
    stores.project()
    http = http_with(60)
    for read in READS:
        counts = []
        for query in ("at_least=0", ""):
            master.pages = 0
            path = f"/v1/spaces/{space}/{read}"
            assert projected(http.get(f"{path}{'&' if '?' in path else '?'}{query}")) == 2
            counts.append(master.pages)
        assert counts[0] == counts[1]
    assert master.looks == 0


def test_a_wait_in_vain_ends_with_what_is_there(http_with, space):
    """The answer tells how far it is true; a record that is not there yet is a 404."""
    answer = http_with(0).get(f"/v1/spaces/{space}/records")
    assert (answer.status_code, answer.json["projected"], answer.json["head"]) == (200, 1, 2)
    assert [record["id"] for record in answer.json["records"]] == ["old"]
    assert http_with(0).get(f"/v1/spaces/{space}/records/tasks/x").status_code == 404


def test_a_client_reads_what_is_there(http_with, master, space):
    """With `at_least=0`, and at a moment that the table includes, also beside a high wait."""
    http = http_with(600)
    for read in ["records?at_least=0", "conflicts?at_least=0", "snapshot?at_least=0", *PAST]:
        assert projected(http.get(f"/v1/spaces/{space}/{read}")) == 1
    assert master.looks == 0


def test_a_halted_projection_is_not_waited_for(http_with, master, space, stores, database):
    stores.project()
    poison(database, space, 3)
    stores.project()
    for read in READS:
        assert projected(http_with(600).get(f"/v1/spaces/{space}/{read}")) == 2
    assert master.looks == 0


def test_a_rebuild_is_not_waited_for(http_with, master, space, database):
    """After an upgrade, the projector leaves the live generation as it is until the rebuild."""
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE projections SET fold_version = %s", [FOLD_VERSION - 1])
    for read in ("records", "conflicts", "snapshot"):
        assert projected(http_with(600).get(f"/v1/spaces/{space}/{read}")) == 1
    assert master.looks == 0
