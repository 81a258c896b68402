"""`foldlog verify --url` ends in bounded memory and time, whatever the service answers."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import pytest
from click.testing import CliRunner

from foldlog.scripts.main import cli
from foldlog.scripts.verification import bounded_http

LOG = "0b7f6a52-3a0e-4a87-9d2b-6f1f0c3f3a11"
HEADER = json.dumps({"foldlog": "export", "version": 1, "space": "s", "log": LOG, "head": 0})
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MEGABYTE = 2**20


def gzip_of(pieces) -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def endless_nothing() -> Iterator[bytes]:
    """Blocks of gzip without content."""
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\3"
    yield from itertools.repeat(b"\0\0\0\xff\xff" * 10_000)


def export_of(*pieces: bytes) -> Iterator[bytes]:
    return itertools.chain([OK, b"\r\n", HEADER.encode(), b"\n"], pieces)


def endless_error() -> Iterator[bytes]:
    return itertools.chain([b"HTTP/1.1 500 No\r\n\r\n"], itertools.repeat(b"x" * 9_999))


class Hostile:
    """Answers each path with some pieces of bytes, until the client has gone."""

    def __init__(self, answers):
        self.answers = answers
        self.closing = Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            path = connection.recv(65_536).split(b" ")[1].decode().partition("?")[0]
            make = self.answers.get(path.removeprefix("/v1/spaces/s/"), lambda: [MISSING])
            for piece in make():
                if piece is None:
                    self.closing.wait(0.05)
                else:
                    connection.sendall(piece)
                if self.closing.is_set():
                    return


@contextmanager
def hostile(**answers):
    service = Hostile({"export": export_of, **answers})
    try:
        yield service.url
    finally:
        service.closing.set()
        service.listening.close()


def endless(head: bytes, piece: bytes):
    return lambda: itertools.chain([OK, head], itertools.repeat(piece))


def records(page: object):
    body = json.dumps(page).encode()
    return lambda: [OK, b"Content-Length: %d\r\n\r\n" % len(body), body]


GZIP = b"Content-Encoding: gzip\r\n\r\n"
BAD = {
    "an endless checkpoint": ({"checkpoint": endless(b"\r\n", b"x" * MEGABYTE)}, "more than"),
    "endless keys": ({"keys": endless(b"\r\n", b"[" * MEGABYTE)}, "more than"),
    "malformed keys": ({"keys": lambda: [OK, b"\r\n", b'{"keys": 7}']}, "malformed"),
    "nested keys": ({"keys": lambda: [OK, b"\r\n", b'{"keys":' + b"[" * 200_000]}, "malformed"),
    "an endless line": ({"export": endless(b"\r\n", b"x" * MEGABYTE)}, "longer than"),
    "an endless header": ({"export": lambda: itertools.repeat(OK)}, "export"),
    "gzip without content": (
        {"export": lambda: itertools.chain([OK, GZIP], endless_nothing())},
        "compressed bytes",
    ),
    "gzip after its end": (
        {"export": lambda: [OK, GZIP, *gzip_of([HEADER.encode()]), b"more"]},
        "compressed bytes",
    ),
    "a truncated gzip": ({"export": lambda: [OK, GZIP, *list(gzip_of([b"x"]))[:1]]}, "cut"),
    "no gzip": ({"export": lambda: [OK, GZIP, b"plain"]}, "no gzip"),
    "another encoding": ({"export": lambda: [OK, b"Content-Encoding: br\r\n\r\n"]}, "'br'"),
    "an endless error": (
        {"export": lambda: endless_error()},
        "more than",
    ),
    "empty pages": ({"records": records({"records": [], "cursor": "again"})}, "has a cursor"),
    "malformed records": ({"records": records({"records": [1], "cursor": None})}, "malformed"),
    "endless records": ({"records": endless(b"\r\n", b"x" * MEGABYTE)}, "more than"),
    "many values": (
        {"records": lambda: [OK, b"\r\n", b'{"records":[{"a":[' + b"0," * 3_000_000]},
        "more than",
    ),
}  # fmt: skip


def verify(url: str) -> str:
    result = CliRunner().invoke(cli, ["verify", "s", "--url", url])
    assert result.exit_code == 3, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


@pytest.mark.parametrize("kind", BAD)
def test_a_hostile_answer_is_refused(kind):
    """Each ends with a clean sentence."""
    answers, expected = BAD[kind]
    with hostile(**answers) as url:
        assert expected in verify(url)


@pytest.mark.parametrize("record", [{}, {"collection": [], "id": "x", "seq": 1}, {"seq": "x"}])
def test_a_malformed_record_is_wrong(record):
    with hostile(records=records({"records": [record], "cursor": None})) as url:
        result = CliRunner().invoke(cli, ["verify", "s", "--url", url])
    assert result.exit_code == 1 and "without a key" in result.output


def test_pages_without_an_end_are_wrong_at_the_first_record():
    """The same page with the same cursor for ever: its records come from no event."""
    record = {"collection": "a", "id": "b", "seq": 0, "fields": {}}
    with hostile(records=records({"records": [record], "cursor": "again"})) as url:
        result = CliRunner().invoke(cli, ["verify", "s", "--url", url])
    assert result.exit_code == 1 and "otherwise than the events make it" in result.output


def drip() -> Iterator[bytes | None]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield from (b"X-A: b\r\n", None)


def slow_body() -> Iterator[bytes | None]:
    yield OK + b"\r\n"
    while True:
        yield from (b"x", None)


@pytest.mark.parametrize(
    ("answer", "expected"), [(drip, "no answer in"), (slow_body, "bytes came in")]
)
def test_a_slow_answer_ends(answer, expected, monkeypatch):
    """Each byte comes before the time limit of a read, but the whole takes for ever."""
    monkeypatch.setattr(bounded_http, "ANSWER_SECONDS_MAX", 0.5)
    monkeypatch.setattr(bounded_http, "PACE_SECONDS", 0.5)
    with hostile(export=answer) as url:
        assert expected in verify(url)


MEASURED = """
import sys
from pathlib import Path
from foldlog.scripts.main import cli
try:
    cli(["verify", "s", "--url", sys.argv[1]])
finally:
    # The maximum of getrusage would begin with that of the parent process.
    [line] = [each for each in Path("/proc/self/status").open() if each.startswith("VmHWM")]
    print(int(line.split()[1]) // 1024, file=sys.stderr)
"""


def bomb_of_lines() -> Iterator[bytes]:
    """Two gigabytes in one line, in two megabytes of gzip."""
    return itertools.chain([OK, GZIP], gzip_of(itertools.repeat(b" " * MEGABYTE, 2_000)))


@pytest.mark.parametrize(
    "answers",
    [
        {"export": bomb_of_lines},
        {"checkpoint": bomb_of_lines},
        {"records": endless(b"\r\n", b'{"records":[{"a":"' + b"x" * MEGABYTE)},
    ],
)
def test_a_bomb_takes_little_memory(answers):
    with hostile(**answers) as url:
        run = subprocess.run([sys.executable, "-c", MEASURED, url], capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    assert int(run.stderr.split()[-1]) < 250, run.stderr
