"""What a call accepts offline, a service accepts: limits, values, and work in parts."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import json
import random
import re
import uuid
from collections import OrderedDict
from pathlib import PurePosixPath

import msgspec
import pytest

import foldlog
from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.server import AsgiServer, Resources
from foldlog.client import collection as collection_module
from foldlog.client.replica import Replica
from foldlog.client.store import database as database_module
from foldlog.client.store.checks import ENVELOPE_BYTES
from foldlog.client.store.known_limits import LEARN_AGAIN_MS
from foldlog.client.transport.server import HttpServer
from foldlog.domain.limits import LIMITS
from foldlog.infrastructure.memory.store import MemoryStore
from tests.client.replicas import replicas
from tests.client.serving import serving

SPACE = "home"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(database_module, "SYNCHRONOUS", "OFF")


@pytest.fixture
def service():
    """Starts services on a socket, with the given limits."""
    with Resources(4) as resources:
        opened = []

        def start(**limits):
            store = MemoryStore()
            app = create_app(
                store=store,
                master=store,
                ready=dict,
                access=OpenAccess(),
                limits=msgspec.structs.replace(LIMITS, **limits),
            )
            running = serving(AsgiServer(app, resources))
            url = running.__enter__()
            opened.append(running)
            return url

        yield start
        for running in opened:
            running.__exit__(None, None, None)


@pytest.fixture
def device(tmp_path):
    with replicas(tmp_path, SPACE, lambda: None) as opened:

        def open_device(name: str, url: str | None = None, **options) -> Replica:
            return opened(name, server=url and HttpServer(url, SPACE), **options)

        yield open_device


def noise(size: int) -> str:
    return random.Random(size).randbytes(size // 2).hex()


def assert_all_stored(replica: Replica) -> None:
    replica.sync()
    status = replica.status()
    assert (status.unsent, status.refused, status.problem) == (0, [], None)


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int


class Shape(msgspec.Struct):
    sides: int


WRONG = {
    "datetime": (datetime.datetime(2026, 1, 2, 3), "due.isoformat()"),
    "date": (datetime.date(2026, 1, 2), "due.isoformat()"),
    "timedelta": (datetime.timedelta(hours=1), "due.total_seconds()"),
    "uuid": (uuid.UUID(int=1), "str(due)"),
    "decimal": (decimal.Decimal("1.10"), "str(due)"),
    "path": (PurePosixPath("/a"), "str(due)"),
    "bytes": (b"\xff", "base64.b64encode(due).decode()"),
    "set": ({3, 1}, "sorted(due)"),
    "tuple": ((1, 2), "list(due)"),
    "ordered": (OrderedDict(a=1), "dict(due)"),
    "enum": (Color.RED, "due.value"),
    "int-enum": (Number.ONE, "due.value"),
    "dataclass": (Point(1), "dataclasses.asdict(due)"),
    "struct": (Shape(3), "msgspec.to_builtins(due)"),
    "large": (2**53, "str(due)"),
    "nan": (float("nan"), "None"),
    "pair": ("\ud83d", None),
    "in-list": ([1, datetime.date(2026, 1, 2)], "due[1].isoformat()"),
    "in-dict": ({"at": {"x": b"1"}}, "base64.b64encode(due['at']['x']).decode()"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_for_a_value_has_a_cure_that_works(device, name):
    """The field, its place and its type are in the text, and the printed expression is accepted."""
    value, cure = WRONG[name]
    tasks = device("a").collection("tasks")
    with pytest.raises(foldlog.NotARecord) as raised:
        tasks.create(title="x", due=value)
    text = str(raised.value)
    assert "`due" in text and "`title" not in text
    printed = re.search(r"store `(.*)`$", text)[1]
    assert cure is None or printed == cure
    modules = {"base64": base64, "dataclasses": dataclasses, "msgspec": msgspec}
    tasks.create(title="x", due=eval(printed, modules | {"due": value}))
    assert len(tasks) == 1


def test_the_sentence_of_a_datetime(device):
    tasks = device("a").collection("tasks")
    with pytest.raises(
        foldlog.NotARecord, match=r"^`due` is a datetime; store `due.isoformat\(\)`$"
    ):
        tasks.create(due=datetime.datetime(2026, 1, 2))


def test_a_limit_of_a_value_is_named(device):
    tasks = device("a").collection("tasks")
    deep: object = 1
    for _ in range(LIMITS.nesting_max + 1):
        deep = [deep]
    for limit, fields in {
        "nesting_max": {"due": deep},
        "integer_max": {"due": {"n": -(2**53)}},
        "field_name_length_max": {"due" * 100: 1},
        "fields_per_operation_max": {f"due{n}": n for n in range(1_001)},
    }.items():
        with pytest.raises(foldlog.LimitExceeded, match=limit) as raised:
            tasks.put("x", fields)
        assert (raised.value.limit, raised.value.value) == (limit, getattr(LIMITS, limit))
        assert raised.value.code == "limit-exceeded"
        assert isinstance(raised.value, foldlog.NotARecord)
        assert "due" in str(raised.value) or limit == "fields_per_operation_max"


def test_increment_on_another_value_says_so(device):
    """Also for a temporary record. A missing field counts as 0."""
    tasks = device("a").collection("tasks")
    fields = {"title": "Milk", "none": None, "flag": True, "large": 1e308}
    for record in (tasks.create(fields), tasks.create_temporary(fields)):
        for name in ("title", "none", "flag"):
            with pytest.raises(foldlog.BadArgument, match=f"`{name}` is a"):
                tasks.increment(record.id, **{"new": 1, name: 1})
        with pytest.raises(foldlog.BadArgument, match="`large`"):
            tasks.increment(record.id, large=1e308)
        with pytest.raises(foldlog.NotARecord, match="`n` is a str"):
            tasks.increment(record.id, n="2")
        assert tasks[record.id].fields == fields
        assert tasks.increment(record.id, new=2)["new"] == 2


def test_a_block_that_grows_beyond_a_limit_raises_and_is_undone(device, service):
    """At the operation that was too much. The largest block that passes is stored by a service."""
    url = service()
    replica = device("a", url)
    tasks = replica.collection("tasks")
    cases = {
        "operations_per_changeset_max": {"n": 1},
        "event_bytes_max": {"note": noise(100_000)},
        "values_per_body_max": {"list": [0] * 20_000},
    }
    for limit, fields in cases.items():
        done = 0
        with pytest.raises(foldlog.LimitExceeded) as raised, replica.changeset():
            while True:
                tasks.create(fields)
                done += 1
        assert raised.value.limit == limit
        assert "create_many" in str(raised.value)
        assert len(tasks) == 0 and not replica.unsent()
        with replica.changeset():
            for _ in range(done):
                tasks.create(fields)
        assert_all_stored(replica)
        tasks.delete_many([task.id for task in tasks])
        assert_all_stored(replica)


def test_one_value_that_is_too_large(device, service):
    """The text names its field. The largest value that passes is stored by a service, also where
    each of its characters takes six bytes in JSON.
    """
    replica = device("a", service())
    tasks = replica.collection("tasks")
    for character, width in (("x", 1), ("\u00e9", 2), ("\x01", 6)):
        most = (LIMITS.event_bytes_max - ENVELOPE_BYTES) // width
        with pytest.raises(foldlog.LimitExceeded, match=r"event_bytes_max.*`note`"):
            tasks.create(title="x", note=character * most)
        assert not replica.unsent()
        tasks.create(title="x", note=character * (most - 300))
        assert_all_stored(replica)


def test_a_refused_changeset_of_the_largest_size_is_an_event_too(device, service):
    """A refusal adds a text to the stored event, which must fit."""
    url = service()
    phone, tablet = device("a", url), device("b", url)
    tasks = phone.collection("tasks")
    tasks.put("one", n=1)
    phone.sync()
    tablet.sync()
    tablet.collection("tasks").put("one", n=2)
    tablet.sync()
    with phone.changeset(guard="unchanged"):
        tasks.put("one", note="x" * (LIMITS.event_bytes_max - ENVELOPE_BYTES - 300))
    phone.sync()
    assert [refusal.code for refusal in phone.refused()] == ["stale"]


def test_a_record_that_would_become_too_large(device):
    """The merge would drop the whole operation without a word."""
    replica = device("a")
    notes = replica.collection("notes")
    part = noise(4_000_000)
    for n in range(4):
        notes.put("one", {f"part{n}": part})
    before = replica.status().unsent
    with pytest.raises(foldlog.LimitExceeded, match=r"record_size_max.*`part5`"):
        notes.put("one", part5=part)
    assert "part5" not in notes["one"].fields and replica.status().unsent == before
    assert notes.put("one", part0="").fields["part0"] == ""


def test_an_error_that_the_app_catches_in_the_block_adds_nothing(device, service):
    """A block whose only change was refused makes no changeset, and a counter is not used up."""
    replica = device("a", service())
    tasks = replica.collection("tasks")
    with replica.changeset(), pytest.raises(foldlog.LimitExceeded):
        tasks.create(note="x" * LIMITS.event_bytes_max)
    assert not replica.unsent() and len(tasks) == 0
    with replica.changeset():
        tasks.create(n=1)
        with pytest.raises(foldlog.LimitExceeded):
            tasks.create(note="x" * LIMITS.event_bytes_max)
    assert [len(changeset["ops"]) for changeset in replica.unsent()] == [1]
    assert_all_stored(replica)


def test_the_limits_of_the_service_are_learned_and_kept(device, service):
    """An operator allows less than the default. The file knows it offline, after the next sync."""
    replica = device("a", service(body_bytes_max=100_000, operations_per_push_max=10))
    tasks = replica.collection("tasks")
    tasks.create(n=1)
    assert_all_stored(replica)
    replica.close()

    offline = device("a")
    tasks = offline.collection("tasks")
    with pytest.raises(foldlog.LimitExceeded, match="body_bytes_max = 100000"):
        tasks.create(note=noise(300_000))
    ten = pytest.raises(foldlog.LimitExceeded, match="operations_per_push_max = 10")
    with ten, offline.changeset():
        for n in range(11):
            tasks.create(n=n)
    assert not offline.unsent() and len(tasks) == 1
    tasks.create(note="x" * 300_000)  # small enough when it is compressed
    tasks.create_many({"n": n} for n in range(25))
    parts = [len(changeset["ops"]) for changeset in offline.unsent()][1:]
    assert max(parts) <= 10 and sum(parts) == 25
    url = str(replica._runner.server._limits_url).removesuffix("/v1/limits")
    offline.close()
    again = device("a", url)
    assert_all_stored(again)
    assert len(again.collection("tasks")) == 27


def test_the_limits_are_read_once_a_day_and_after_a_surprise(device, service):
    now = [1_800_000_000_000]
    replica = device("a", service(values_per_body_max=60_000), now_ms=lambda: now[0])
    tasks, asked = replica.collection("tasks"), []
    server = replica._runner.server
    real = server.limits
    server.limits = lambda: asked.append(1) or real()
    for ms in (0, 1_000, LEARN_AGAIN_MS, 1_000, -2 * LEARN_AGAIN_MS):
        now[0] += ms
        replica.sync()
    assert len(asked) == 3  # at first, after a day, and after the clock was set back
    replica._store.limits.learn({}, now[0])  # as if the operator had lowered the limit since
    tasks.create(list=[0] * 100_000)
    replica.sync()
    (refusal,) = replica.refused()
    assert refusal.code == "limit-exceeded" and len(asked) == 4
    with pytest.raises(foldlog.LimitExceeded, match="values_per_body_max = 60000"):
        tasks.create(list=[0] * 100_000)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"event_bytes_max": 0, "operations_per_changeset_max": -1, "nesting_max": "9"},
        {"event_bytes_max": None, "nesting_max": True, "unknown_max": 1},
        foldlog.Unreachable("no answer"),
        foldlog.ServerProblem(404, {"code": "no-such-path"}, None),
    ],
    ids=str,
)
def test_a_service_without_usable_limits_leaves_the_defaults(device, service, answer):
    """The sync succeeds, and the app can write."""
    replica = device("a", service())

    def limits():
        if isinstance(answer, Exception):
            raise answer
        return answer

    replica._runner.server.limits = limits
    replica.collection("tasks").create(n=1)
    assert_all_stored(replica)
    assert replica._store.limits.current == LIMITS
    replica.collection("tasks").create(n=1)


def test_many_rows_are_split_into_parts(device, service):
    """More rows than a changeset takes: created, changed and deleted, with progress, and stored."""
    replica = device("a", service())
    tasks, told = replica.collection("tasks"), []

    def progress(done, total):
        told.append((done, total))

    made = tasks.create_many(({"n": n} for n in range(1_201)), on_progress=progress)
    assert [record["n"] for record in made] == list(range(1_201))
    assert told == [(500, 1_201), (1_000, 1_201), (1_201, 1_201)]
    changed = tasks.update_many({record.id: {"done": True} for record in made})
    assert all(record["done"] and record["n"] == n for n, record in enumerate(changed))
    tasks.update_many((record.id, {"n": 0}) for record in made[:3])
    assert len(replica.unsent()) == 3 + 3 + 1
    assert_all_stored(replica)
    tasks.delete_many(record.id for record in made)
    assert len(tasks) == 0
    assert_all_stored(replica)
    assert tasks.create_many([]) == [] and not replica.unsent()


def test_parts_have_a_bounded_size(device, service):
    """Rows of any size that passes alone. A part ends at about 256 KiB."""
    replica = device("a", service())
    notes = replica.collection("notes")
    sizes = [10, 100_000, 100_000, 100_000, 4_000_000, 10, 3_000_000, 3_000_000, 10]
    notes.create_many({f"{n}": {"text": noise(size)} for n, size in enumerate(sizes)})
    assert [record.id for record in notes.query(order_by="n")] == [str(n) for n in range(9)]
    for changeset in replica.unsent():
        *before, _ = (len(json.dumps(op)) for op in changeset["ops"])
        assert sum(before) < collection_module.PART_BYTES
    assert_all_stored(replica)


def test_a_row_that_fails_undoes_its_part_alone(device):
    """The earlier parts stay, and the progress has told their rows."""
    replica = device("a")
    tasks, told = replica.collection("tasks"), []
    tasks.create(id="700")
    rows = {str(n): {"n": n} for n in range(1_000)}
    with pytest.raises(foldlog.RecordExists, match="700"):
        tasks.create_many(rows, on_progress=lambda done, total: told.append(done))
    assert told == [500] and len(tasks) == 501
    with pytest.raises(foldlog.LimitExceeded, match="`note`"):
        tasks.update_many([("3", {"n": -1}), ("4", {"note": "x" * LIMITS.event_bytes_max})])
    assert tasks["3"]["n"] == -1 and "note" not in tasks["4"].fields
    with pytest.raises(foldlog.RecordNotFound):
        tasks.delete_many(["3", "nowhere"])
    assert "3" in {task.id for task in tasks}
    with pytest.raises(foldlog.BadArgument, match="delete"):
        tasks.delete_many("3")


def test_in_a_block_all_rows_belong_to_the_block(device):
    replica = device("a")
    tasks = replica.collection("tasks")
    with replica.changeset():
        tasks.create_many({"n": n} for n in range(700))
        tasks.create_many({"n": n} for n in range(300))
    assert [len(changeset["ops"]) for changeset in replica.unsent()] == [1_000]
    with pytest.raises(foldlog.LimitExceeded), replica.changeset():
        tasks.create_many({"n": n} for n in range(1_001))
    assert len(tasks) == 1_000 and len(replica.unsent()) == 1
