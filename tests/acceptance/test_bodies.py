"""Bodies on their way in and out: encodings, and bounds that hold whatever a client says."""

from __future__ import annotations

import asyncio
import gc
import gzip
import http.client
import io
import json
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import brotli
import pytest
from backports import zstd

from foldlog.api.http.bodies import SMALL_BODY_BYTES, Reservation, read_body
from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.rates import NO_RATES, LimitedRates
from foldlog.api.http.requests import Request
from foldlog.api.http.resources import Resources
from foldlog.domain.errors import RateLimited
from foldlog.domain.limits import LIMITS, Limits
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import A, changeset, new_id, put

from .conftest import SENT_AT, assert_problem
from .live import Space, served

MIB = 2**20
PIECE_BYTES = 64 * 2**10


def body_of(*changesets: dict) -> bytes:
    return json.dumps({"device": A, "sent_at": SENT_AT, "changesets": changesets}).encode()


def send(client, body: bytes, encoding: str, **kwargs):
    headers = {"Content-Encoding": encoding}
    return client.post("changesets", body, headers=headers, **kwargs)


def stream(client, body: io.IOBase, encoding: str = "identity"):
    """Sends a chunked body: its length is unknown until it ends."""
    headers = {"Transfer-Encoding": "chunked", "Content-Encoding": encoding}
    pieces = iter(lambda: body.read(PIECE_BYTES), b"")
    return client.http.post(
        client.url("changesets"), pieces=pieces, headers=headers, content_type="application/json"
    )


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("zstd", zstd.compress),
        ("identity", bytes),
    ],
)
def test_a_compressed_push_is_stored(client, encoding, compress):
    """
    A phone on a bad line saves what it can.
    """
    answer = send(client, compress(body_of(changeset(put(title="x" * 200_000)))), encoding)

    assert answer.status_code == 200, answer.text
    assert answer.json["head"] == 1


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zip"])
def test_another_encoding_is_refused_and_told_what_is_understood(client, encoding):
    """
    RFC 9110 section 12.5.3.
    """
    answer = send(client, b"whatever", encoding)

    assert_problem(answer, 415, "unsupported-media-type")
    assert answer.headers["Accept-Encoding"] == "gzip, zstd"


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_another_media_type_is_refused(client, content_type):
    """
    A browser's form must not be able to push; and no charset is guessed.
    """
    answer = client.http.post(client.url("changesets"), data=body_of(), content_type=content_type)

    assert_problem(answer, 415, "unsupported-media-type")
    assert answer.headers["Accept"] == "application/json"


@pytest.mark.parametrize(
    "content_type", ["application/json;charset=utf-8", 'Application/JSON; charset="UTF-8"']
)
def test_utf8_may_be_said(client, content_type):
    """
    It is superfluous, and many clients say it.
    """
    answer = client.http.post(client.url("changesets"), data=body_of(), content_type=content_type)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
def test_a_bomb_is_not_inflated(app_with, encoding, compress):
    """
    A few KiB that would become 64 MiB: the limit is about the most that is ever held in memory.
    """
    client = app_with(limits=Limits(inflated_bytes_max=MIB))
    bomb = compress(bytes(64 * MIB))
    tracemalloc.start()

    answer = send(client, bomb, encoding)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_problem(answer, 413, "limit-exceeded", limit="inflated_bytes_max", value=MIB)
    assert peak < 4 * MIB


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
def test_the_inflated_limit_is_exact(app_with, encoding, compress):
    """
    The last byte that is allowed is allowed; the next one is not.
    """
    body = body_of(changeset())
    client = app_with(limits=Limits(inflated_bytes_max=len(body)))

    assert send(client, compress(body), encoding).status_code == 200
    assert send(client, compress(body + b" "), encoding).status_code == 413


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
def test_every_truncation_is_refused(client, encoding, compress):
    """
    A body that breaks off may still be whole JSON: the end of the stream must have come.
    """
    whole = compress(body_of(changeset()))

    for end in range(len(whole)):
        answer = send(client, whole[:end], encoding)
        assert_problem(answer, 400, "invalid-request")


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
@pytest.mark.parametrize("gap", [0, 200_000])
def test_something_after_the_end_is_refused(client, encoding, compress, gap):
    """
    Also where it comes in another piece than the end.
    """
    whole = compress(body_of(changeset(put(title="x" * gap))))

    assert_problem(send(client, whole + b"more", encoding), 400, "invalid-request")
    assert_problem(send(client, whole + bytes(100_000), encoding), 400, "invalid-request")
    assert_problem(send(client, whole + whole, encoding), 400, "invalid-request")


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
def test_something_in_a_piece_of_its_own_after_the_end_is_refused(client, encoding, compress):
    """
    A stream may end where a piece ends, and the wire goes on.
    """
    answer = stream(client, Pieces(compress(body_of(changeset())), b"more"), encoding)

    assert_problem(answer, 400, "invalid-request")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_was_never_compressed_is_refused(client, encoding):
    """
    A header alone compresses nothing.
    """
    assert_problem(send(client, body_of(changeset()), encoding), 400, "invalid-request")


def test_a_flipped_bit_is_refused(client):
    """
    The checksum at the end of a stream is looked at.
    """
    whole = bytearray(gzip.compress(body_of(changeset())))
    whole[-6] ^= 1

    assert_problem(send(client, bytes(whole), "gzip"), 400, "invalid-request")


def test_a_zstd_window_is_bounded(client):
    """
    A frame can ask its reader to hold a window of gigabytes; RFC 9659 says 8 MiB.
    """
    options = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(body_of(changeset())) + compressor.flush()

    assert_problem(send(client, body, "zstd"), 400, "invalid-request")


@pytest.mark.parametrize("level", [1, 19, 22])
def test_every_usual_zstd_level_is_read(client, level):
    """
    The window of no usual sender of a body this small is larger than that.
    """
    body = zstd.compress(body_of(changeset(put(title="x" * 100_000))), level)

    assert send(client, body, "zstd").status_code == 200


def test_a_body_over_the_limit_is_refused_unread(app_with):
    """
    413, with the limit's name: the client halves its batch.
    """
    client = app_with(limits=Limits(body_bytes_max=1_000))

    answer = client.push(changeset(put(title="x" * 1_000)))

    assert_problem(answer, 413, "limit-exceeded", limit="body_bytes_max", value=1_000)


def test_a_body_of_unsaid_length_is_bounded(app_with):
    """
    A chunked body says no length: it is counted as it comes, and read no further.
    """
    client = app_with(limits=Limits(body_bytes_max=100_000))
    endless = Endless()

    answer = stream(client, endless)

    assert_problem(answer, 413, "limit-exceeded", limit="body_bytes_max", value=100_000)
    assert endless.read_bytes < 300_000


class Pieces(io.RawIOBase):
    """A body that comes in these pieces."""

    def __init__(self, *pieces: bytes):
        self.pieces = iter(pieces)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = next(self.pieces, b"")
        buffer[: len(piece)] = piece
        return len(piece)


class Endless(io.RawIOBase):
    """A client that does not stop sending, as far as a test has patience."""

    read_bytes = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.read_bytes > 10 * MIB:
            return 0
        buffer[:] = b" " * len(buffer)
        self.read_bytes += len(buffer)
        return len(buffer)


def test_a_chunked_body_is_read(client):
    """
    Some clients stream what they send.
    """
    answer = stream(client, io.BytesIO(body_of(changeset())))

    assert answer.status_code == 200


def test_a_body_that_breaks_off_on_the_wire_is_refused(client):
    """
    What the server raises then is no fault of ours.
    """

    class Broken(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, _):
            raise ConnectionResetError

    answer = stream(client, Broken())

    assert_problem(answer, 400, "invalid-request")


def test_too_many_changesets_at_once(app_with):
    """
    413, like every limit of size: half of them will do.
    """
    client = app_with(limits=Limits(changesets_per_push_max=2))

    answer = client.push(*[changeset(put(str(n))) for n in range(3)])

    assert_problem(answer, 413, "limit-exceeded", limit="changesets_per_push_max", value=2)


@pytest.mark.parametrize(
    ("accepted", "encoding", "inflate"),
    [
        ("gzip", "gzip", lambda data: zlib.decompress(data, wbits=31)),
        ("br", "br", brotli.decompress),
        ("zstd", "zstd", zstd.decompress),
        ("gzip, deflate, br, zstd", "zstd", zstd.decompress),
        ("gzip;q=1.0, zstd;q=0.5", "gzip", gzip.decompress),
        ("identity", None, bytes),
        ("", None, bytes),
    ],
)
def test_an_answer_is_compressed_as_the_client_can_read_it(client, accepted, encoding, inflate):
    """
    And a cache between is told that it depends on that.
    """
    client.push(*[changeset(put(str(n))) for n in range(20)])

    answer = client.get("events", headers={"Accept-Encoding": accepted})

    assert answer.headers.get("Content-Encoding") == encoding
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert len(json.loads(inflate(answer.data))["events"]) == 20


def test_a_small_answer_is_not_compressed(client):
    """
    An idle sync fits one packet anyway.
    """
    answer = client.get("events", headers={"Accept-Encoding": "gzip"})

    assert "Content-Encoding" not in answer.headers


def test_head_answers_as_get_without_the_body(client):
    """
    Same headers, no body.
    """
    client.push(*[changeset(put(str(n))) for n in range(20)])
    headers = {"Accept-Encoding": "gzip", "X-Request-Id": "x"}

    get = client.get("events", headers=headers)
    head = client.http.head(client.url("events"), headers=headers)

    assert head.data == b""
    assert head.status_code == 200
    # gzip writes the time into its header, but the length stays.
    assert dict(head.headers) == dict(get.headers)


def test_data_is_kept_by_no_cache(client):
    """
    It is what users wrote; and a problem must not outlive its cause.
    """
    client.push(changeset())

    for answer in (client.get("events"), client.get("records"), client.get("events?x=1")):
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "ETag" not in answer.headers


# -- What decoding may take --------------------------------------------------------------------


def values_in(body: bytes) -> int:
    return sum(body.count(sign) for sign in b",[{")


def test_the_limit_of_values_is_exact(app_with):
    """
    The last one that is allowed is allowed; signs in texts count as well.
    """
    body = body_of(changeset(put(title=",[{" * 100)))
    client = app_with(limits=Limits(values_per_body_max=values_in(body)))
    over = body.replace(b",[{", b",[{,", 1)

    assert client.post("changesets", body).status_code == 200
    answer = client.post("changesets", over)

    limit = {"limit": "values_per_body_max", "value": values_in(body)}
    assert_problem(answer, 413, "limit-exceeded", **limit)


@pytest.mark.parametrize("end", [b"]}", b"\x01]}"])
def test_a_few_bytes_do_not_become_millions_of_values(client, end):
    """
    Neither decoded, nor searched for what is wrong with them: both would take seconds.
    """
    wide = b'{"changesets":[' + b"[]," * (5 * MIB) + b"[]" + end
    tracemalloc.start()

    answer = send(client, zstd.compress(wide), "zstd")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    limit = {"limit": "values_per_body_max", "value": LIMITS.values_per_body_max}
    assert_problem(answer, 413, "limit-exceeded", **limit)
    assert peak < 50 * MIB


@pytest.mark.parametrize(("changesets", "operations"), [(1_000, 10), (30, 1_000)])
def test_a_large_push_is_within_the_limits(changesets, operations):
    """
    As many changesets as may be, and large ones: of a few operations, with a few fields each.
    """
    ops = [put(new_id(), title="Buy milk", done=False) for _ in range(operations)]
    body = body_of(*[changeset(*ops)] * changesets)

    assert values_in(body) <= LIMITS.values_per_body_max
    assert changesets * operations <= LIMITS.operations_per_push_max


def test_what_cannot_be_read_is_found_by_sending_less(client):
    """
    In a large push it is not looked for: a client halves it, as for any 413, until it is told.
    """
    good, bad = changeset(put(title="x" * 200_000)), changeset(put("s", title="\ud83d"))
    limit = {"limit": "unreadable_bytes_max", "value": LIMITS.unreadable_bytes_max}

    answer = client.post("changesets", body_of(good, good, bad))
    assert_problem(answer, 413, "limit-exceeded", **limit)

    answer = client.post("changesets", body_of(good, bad))
    assert (answer.status_code, answer.json["index"]) == (422, 1)


def test_a_large_body_is_decoded_beside_the_loop(client, monkeypatch):
    """
    Others are answered meanwhile. A small one is done before a thread would have begun.
    """
    decoded_by = []

    def decode(self, body):
        decoded_by.append(threading.current_thread())
        return _decode(self, body)

    _decode = JsonBody._decode
    monkeypatch.setattr(JsonBody, "_decode", decode)
    for size in (10, SMALL_BODY_BYTES):
        answer = client.post("changesets", body_of(changeset(put(title="x" * size))))
        assert answer.status_code == 200, answer.text

    small, large = decoded_by
    assert small is not large


# -- Bodies whose end is withheld --------------------------------------------------------------


class Withheld:
    """A body that has arrived except for its last byte, which arrives when `end` is set."""

    def __init__(self, resources: Resources, body: bytes, rates=NO_RATES, address="192.0.2.1"):
        self._body = body
        self.end = asyncio.Event()
        headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
        scope = {"type": "http", "method": "POST", "query_string": b"", "headers": headers}
        self._messages = self._sent()
        self.request = Request(scope, self._messages.__anext__, resources, rates)
        self.request.subject.address = address

    async def _sent(self) -> AsyncIterator[dict]:
        yield {"type": "http.request", "body": self._body[:-1], "more_body": True}
        await self.end.wait()
        yield {"type": "http.request", "body": self._body[-1:], "more_body": False}

    async def read(self, limits: Limits) -> int:
        with Reservation(self.request) as reservation:
            return len(await read_body(self.request, limits, reservation))


async def comes_beside(limits: Limits, rates=NO_RATES) -> dict:
    """What a second body of 1 MiB is refused for, while the end of a first one is withheld."""
    resources = Resources(1, limits)
    first, second, small = (
        Withheld(resources, gzip.compress(b" " * size), rates)
        for size in (MIB, MIB, SMALL_BODY_BYTES)
    )
    reading = asyncio.create_task(first.read(limits))
    await asyncio.sleep(0)
    second.end.set()
    small.end.set()
    with pytest.raises(RateLimited) as refused:
        await second.read(limits)
    assert await small.read(limits) == SMALL_BODY_BYTES
    first.end.set()
    assert await reading == MIB
    assert resources.bodies.held == 0
    return refused.value.extra


async def comes_beside_of_others(limits: Limits) -> int:
    """How much of a second caller's body of 1 MiB comes, meanwhile."""
    resources = Resources(1, limits)
    first, second = (
        Withheld(resources, gzip.compress(b" " * MIB), address=address)
        for address in ("192.0.2.1", "192.0.2.2")
    )
    reading = asyncio.create_task(first.read(limits))
    await asyncio.sleep(0)
    second.end.set()
    came = await second.read(limits)
    first.end.set()
    assert await reading == MIB
    assert resources.bodies.held == 0
    return came


def test_what_has_come_of_a_body_counts_before_its_end():
    """
    Slow connections are held to the rate by what they hold; the first is not, for its own length.
    """
    limits = Limits(requests_per_second_per_address=1, requests_per_second_per_caller=0)
    rates = LimitedRates(limits, lambda: 0.0)

    refused = asyncio.run(comes_beside(limits, rates))

    assert refused == {"limit": "requests_per_second_per_address", "value": 1}


def test_a_worker_holds_no_more_than_so_many_bytes_of_bodies():
    """
    Of everybody together; small ones come through, and room that was held is given back.
    """
    refused = asyncio.run(comes_beside(Limits(bodies_bytes_max=MIB)))

    assert refused == {"limit": "bodies_bytes_max", "value": MIB}


def test_a_caller_has_a_share_of_them():
    """Whoever opens many connections leaves room for the others."""
    limits = Limits(bodies_bytes_per_caller_max=MIB)

    refused = asyncio.run(comes_beside(limits))

    assert refused == {"limit": "bodies_bytes_per_caller_max", "value": MIB}
    assert asyncio.run(comes_beside_of_others(limits)) == MIB


# -- Headers that are given twice --------------------------------------------------------------


@pytest.mark.parametrize("path", ["changesets", "devices"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "identity"),
        ("Authorization", "Bearer x"),
        ("Content-Length", "2"),
    ],
)
def test_a_header_that_is_given_twice_is_refused(path, name, value):
    """
    A proxy might obey one of them and we the other.
    """
    once = {"Content-Type": "application/json", "Content-Length": "2", name: value}
    with served(MemoryStore()) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
        connection.putrequest("POST", f"/v1/spaces/s/{path}")
        for given in (*once.items(), (name, value)):
            connection.putheader(*given)
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        told = answer.read()
        connection.close()

    assert answer.status == 400
    assert name == "Content-Length" or b"more than once" in told  # that one no server takes


def test_bodies_with_a_wrong_member_leave_memory_at_once():
    """
    Also when a schema refuses them: the refusal's traceback must not keep the body.
    """
    body = b'{"device": 1, "sent_at": "x", "changesets": [' + b" " * 2 * MIB + b"]}"
    headers = {"Content-Type": "application/json"}
    with served(MemoryStore()) as service:
        space = Space(service.port)
        space.push(changeset())
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                answer = space.http.post("changesets", content=body, headers=headers)
                assert answer.status_code == 400
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert now < 2 * MIB


def test_a_body_that_was_refused_is_let_go_of():
    """
    At once, and not when garbage is collected next: until then there may be many.
    """
    body = body_of(changeset(put(title="x" * 2 * MIB + "\ud83d")))
    headers = {"Content-Type": "application/json"}
    with served(MemoryStore()) as service:
        space = Space(service.port)
        space.push(changeset())
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                answer = space.http.post("changesets", content=body, headers=headers)
                assert answer.status_code == 413
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert now < 2 * MIB
