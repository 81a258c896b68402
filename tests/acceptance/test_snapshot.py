"""GET /v1/spaces/{space}/snapshot"""

from __future__ import annotations

import json
import sys
import zlib

import brotli
import msgspec
import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from foldlog.domain.errors import ProjectionBehind, StorageUnavailable
from foldlog.domain.ports import MasterTable, Snapshot, SnapshotCursor
from tests.conftest import LIMITS
from tests.helpers import A, B, add, changeset, delete, put
from tests.new_device import NewDevice, fold_of, with_limits

from .conftest import assert_problem
from .test_openapi import assert_valid

PAGE = 2


@pytest.fixture
def master(store):
    """A master table that reads a snapshot in small pages, and that can fail on demand."""
    return BreakingMaster(
        with_limits(store, msgspec.structs.replace(LIMITS, page_snapshot_records=PAGE))
    )


@pytest.fixture
def client(app_with, master):
    return app_with(master=master)


class BreakingMaster:
    def __init__(self, master: MasterTable):
        self.master = master
        self.pages_left = sys.maxsize
        self.error: Exception = StorageUnavailable()

    def __getattr__(self, name):
        return getattr(self.master, name)

    def snapshot(self, *args, **kwargs) -> Snapshot:
        snapshot = self.master.snapshot(*args, **kwargs)
        return Snapshot(snapshot.header, self._pages(snapshot))

    def _pages(self, snapshot):
        for page in snapshot.pages:
            if self.pages_left == 0:
                raise self.error
            self.pages_left -= 1
            yield page


def lines_of(answer) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    assert answer.data.endswith(b"\n")
    return answer.data.splitlines()


def test_the_exact_form(client):
    """
    JSON lines: a header, records with their writes, and a closing line for each page.
    """
    first = client.filled(put("a", title="Milk"), put("b"), add("c", n=1))
    second = client.filled(delete("b"), device=B)
    mark = client.get("events?after=1").json["mark"]

    answer = client.get("snapshot")
    header, *body = map(json.loads, lines_of(answer))

    (one,), (two,) = first["verdicts"], second["verdicts"]
    assert answer.mimetype == "application/x-ndjson"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert "Content-Length" not in answer.headers
    assert header == {"log": first["log"], "seq": 2, "mark": mark, "records": 3}
    cursor = body[2]["cursor"]
    assert cursor
    made = {"last_modified": one["received_at"], "seq": 1, "created_seq": 1}
    gone = {"last_modified": two["received_at"], "seq": 2, "created_seq": 1}
    assert body == [
        {
            "collection": "tasks",
            "id": "a",
            "fields": {"title": "Milk"},
            "is_deleted": False,
            **made,
            "writes": [[1, A, one["time"], 0, ["title"]]],
            "deleted": None,
        },
        {
            "collection": "tasks",
            "id": "b",
            "fields": {},
            "is_deleted": True,
            **gone,
            "writes": [],
            "deleted": [2, B, two["time"], 0],
        },
        {"at": 2, "mark": header["mark"], "cursor": cursor},
        {
            "collection": "tasks",
            "id": "c",
            "fields": {"n": 1},
            "is_deleted": False,
            **made,
            "writes": [[1, A, one["time"], 0, ["n"]]],
            "deleted": None,
        },
        {"at": 2, "mark": header["mark"], "cursor": None},
    ]


def test_a_new_device_starts_from_it(client, store):
    """
    It loads the snapshot, follows the log from the header's seq, and reaches the log's state.
    """
    client.filled(*(put(f"r{n}", n=n) for n in range(7)))
    client.filled(delete("r1"), add("r2", n=1), delete("never"), device=B)
    device = NewDevice()

    device.load(lines_of(client.get("snapshot?at_least=2")))
    client.push(changeset(put("r1", n=9), add("r2", n=1), base=2))
    device.follow(store, client.space)

    assert device.states() == fold_of(store, client.space)


def test_a_stream_that_breaks_ends_without_its_last_line_and_goes_on_by_its_cursor(
    client, store, master, lines
):
    """
    The status was sent already, so readers detect the error by the missing last line, and our log
    has the cause. The next download resumes after the last cursor.
    """
    client.filled(*(put(f"r{n}", n=n) for n in range(7)))
    device = NewDevice()

    for whole_pages in (1, 0, 2):
        master.pages_left = whole_pages
        master.error = StorageUnavailable() if whole_pages else RuntimeError("what happened")
        answer = client.get("snapshot" + (f"?cursor={device.cursor}" if device.cursor else ""))
        found = lines_of(answer)
        device.load(found)
        assert len(found) == 1 + whole_pages * (PAGE + 1)
        assert not device.is_whole
        cut = [line for line in lines if line["event"] == "snapshot-cut"][-1]
        assert cut["space"] == client.space
        assert cut["request_id"] == answer.headers["X-Request-Id"]
        assert cut["exc_info"] is master.error
        client.push(changeset(put("r0", n="later"), put("r6", n="later")))
    master.pages_left = sys.maxsize
    device.load(lines_of(client.get(f"snapshot?cursor={device.cursor}&at_least=4")))
    device.follow(store, client.space)

    assert device.states() == fold_of(store, client.space)


def test_a_request_is_one_line_in_the_log(client, lines):
    """
    The line is written when the response begins, so it lacks the size.
    """
    client.filled(*(put(f"r{n}") for n in range(5)))
    lines.clear()

    lines_of(client.get("snapshot"))

    (line,) = lines
    assert (line["event"], line["status"], line["bytes_out"]) == ("request", 200, None)
    assert line["path"] == "/v1/spaces/{space}/snapshot"


def _brotli():
    return brotli.Decompressor().process


@pytest.mark.parametrize(
    ("accepted", "encoding", "inflater"),
    [
        ("gzip", "gzip", lambda: zlib.decompressobj(31).decompress),
        ("br", "br", _brotli),
        ("zstd", "zstd", lambda: zstd.ZstdDecompressor().decompress),
        ("gzip, deflate, br, zstd", "zstd", lambda: zstd.ZstdDecompressor().decompress),
        ("gzip;q=1.0, zstd;q=0.5", "gzip", lambda: zlib.decompressobj(31).decompress),
        ("*", "zstd", lambda: zstd.ZstdDecompressor().decompress),
        ("deflate", None, lambda: bytes),
        ("gzip;q=0", None, lambda: bytes),
        ("identity", None, lambda: bytes),
        ("", None, lambda: bytes),
    ],
)
def test_each_page_is_compressed_and_arrives_when_it_is_ready(client, accepted, encoding, inflater):
    """
    In a coding that the client accepts. The client can decode each piece at once, so an interrupted
    download loses at most one page.
    """
    client.filled(*(put(f"r{n}", text="again and again " * 20) for n in range(7)))
    inflate = inflater()

    answer = client.get("snapshot", headers={"Accept-Encoding": accepted})
    pieces = list(answer.response)
    read = [inflate(piece) for piece in pieces]

    assert answer.headers.get("Content-Encoding") == encoding
    assert "Accept-Encoding" in answer.headers["Vary"]
    texts = [text for text in read if text]
    assert len(texts) == 1 + 4
    assert all(text.endswith(b"\n") for text in texts)
    assert [len(text.splitlines()) for text in texts] == [1, 3, 3, 3, 2]
    mark = json.loads(texts[0])["mark"]
    assert json.loads(texts[-1].splitlines()[-1]) == {"at": 1, "mark": mark, "cursor": None}
    if encoding:
        assert sum(map(len, pieces)) < sum(map(len, texts)) / 2


def test_a_page_is_read_when_the_one_before_has_left(client, master):
    """
    The service holds at most one page, even for a large space and a slow reader.
    """
    client.filled(*(put(f"r{n}") for n in range(7)))
    master.pages_left = 100

    pieces = iter(client.get("snapshot").response)
    next(pieces)
    assert master.pages_left == 100
    next(pieces)
    assert master.pages_left == 99


def test_head_answers_without_a_body(client):
    """
    It has the headers of GET.
    """
    client.filled(put())

    answer = client.http.head(client.url("snapshot"))

    assert (answer.status_code, answer.mimetype, answer.data) == (200, "application/x-ndjson", b"")


def test_every_line_is_what_the_document_says(client, http):
    """
    Each line has only documented members.
    """
    client.filled(put("a", deep={"a": [1, "2", None]}), put("b"), delete("b"), put("c"))
    document = http.get("/openapi.json").json
    answer = document["paths"]["/v1/spaces/{space}/snapshot"]["get"]["responses"]["200"]
    schema = answer["content"]["application/x-ndjson"]["schema"]

    found = lines_of(client.get("snapshot"))

    assert len(found) == 6
    for line in found:
        assert_valid(document, schema, json.loads(line))


# -- Problems ----------------------------------------------------------------------------------


def test_an_unknown_space_is_not_found(client):
    """
    The response is an ordinary problem document, because the body had not begun.
    """
    assert_problem(client.get("snapshot"), 404, "unknown-space")


def test_a_snapshot_behind_the_writes_is_told_to_come_back(app_with):
    """
    The wait is bounded, as for every read of the master table.
    """

    class Behind:
        def snapshot(self, _, *, cursor, at_least):
            raise ProjectionBehind(head=at_least, projected=1)

    answer = app_with(master=Behind()).get("snapshot?at_least=9")

    assert_problem(answer, 503, "projection-behind", head=9, projected=1)
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("cursor", ["x", "!!", "W10", "%F0%9F%90%98", "WzFd" * 1_000])
def test_a_strange_cursor_is_refused(client, cursor):
    """
    It is an error of the client.
    """
    client.filled(put())

    assert_problem(client.get(f"snapshot?cursor={cursor}"), 400, "invalid-request")


def test_a_cursor_of_another_history_is_refused(client):
    """
    Pages of two histories are incompatible: the device starts again without a cursor.
    """
    log = client.filled(put())["log"]
    ahead = SnapshotCursor(log, 5, "", "tasks", "r").cursor
    other = SnapshotCursor("another", 1, "", "tasks", "r").cursor

    assert_problem(client.get(f"snapshot?cursor={ahead}"), 409, "log-behind", log=log, head=1)
    assert_problem(client.get(f"snapshot?cursor={other}"), 409, "log-changed", log=log, head=1)


def test_a_mistyped_parameter_is_named(client):
    """
    The problem names it.
    """
    client.filled(put())

    answer = client.get("snapshot?curser=x&at_least=-1")

    assert answer.status_code == 400
    assert {error["parameter"] for error in answer.json["errors"]} == {"curser", "at_least"}


def test_a_database_that_is_away_is_unavailable(app_with):
    """
    The first page fails, before the response begins.
    """

    class Away:
        def snapshot(self, *_, **__):
            raise StorageUnavailable

    answer = app_with(master=Away()).get("snapshot")

    assert_problem(answer, 503, "storage-unavailable")
