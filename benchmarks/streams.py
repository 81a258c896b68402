"""Clients that wait, thousands of them, in a process of their own: `python -m benchmarks.streams`.

A separate process has enough file descriptors for ten thousand sockets, and its one thread only
times arrivals. It uses raw sockets and a selector, and parses only the number of an event. The
order comes as JSON on the command line, and the result is printed as JSON.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
import time

import msgspec

from .connection import END, Connection, request
from .errors import BenchmarkFailed
from .load import percentiles
from .workload import Workload

ANSWER_SECONDS_MAX = 60.0
PUSHES_PER_SECOND = 10
RECEIVE_BYTES = 2**16
#: the number of a Server-Sent Event
_ID = re.compile(rb"(?:^|\n)id: ?(\d+)\r?\n")
_GOOD = re.compile(rb"HTTP/1.1 200 ")


class Task(msgspec.Struct):
    """`{space}` in a path is replaced by the space's name."""

    port: int
    streams: int
    path: str  #: the path that each client requests, for each space in turn
    spaces: tuple[str, ...] = ("",)
    is_silent: bool = False  #: the answer starts with the first event
    push_path: str = ""  #: the path of regular pushes; empty if the streams are only held open
    after: int = 0  #: the number of the last existing event
    seconds: float = 0


class Arrivals(msgspec.Struct):
    """Milliseconds from an acknowledgement to the arrival of the event at each stream."""

    p50_ms: float
    p99_ms: float
    pushes: int
    generator_cpu: float


class Stream:
    """A client with an open stream."""

    __slots__ = ("received", "socket", "space")

    def __init__(self, task: Task, number: int):
        self.space = number % len(task.spaces)
        self.socket = socket.create_connection(("127.0.0.1", task.port), ANSWER_SECONDS_MAX)
        self.socket.sendall(request("GET", task.path.format(space=task.spaces[self.space])))
        self.received = b""

    def receive(self) -> bytes:
        """Returns the bytes that have arrived since the last call."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BenchmarkFailed(f"a stream has ended: {self.received!r}")
        self.received += piece
        return self.received


class Clients:
    """All open clients."""

    def __init__(self, task: Task):
        self.task = task
        self.selector = selectors.DefaultSelector()
        self.streams = [Stream(task, number) for number in range(task.streams)]
        for stream in self.streams:
            self.selector.register(stream.socket, selectors.EVENT_READ, stream)
        if not task.is_silent:
            self._wait_until_answered()

    def _wait_until_answered(self) -> None:
        waiting = set(self.streams)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while waiting:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{len(waiting)} streams were not answered")
            for key, _ in self.selector.select(1):
                stream: Stream = key.data
                if END in stream.receive():
                    if not _GOOD.match(stream.received):
                        raise BenchmarkFailed(repr(stream.received[:2_000]))
                    stream.received = b""
                    waiting.discard(stream)

    def follow(self) -> Arrivals:
        """Pushes regularly, and times the arrival at each stream of the space."""
        task = self.task
        pusher = Connection(task.port)
        self.selector.register(pusher.socket, selectors.EVENT_READ)
        workloads = [Workload(space) for space in task.spaces]
        following = [0] * len(task.spaces)
        for stream in self.streams:
            following[stream.space] += 1
        times: list[float] = []
        cpu, began = time.process_time(), time.perf_counter()
        number = round(task.seconds * PUSHES_PER_SECOND)
        for push in range(number):
            space, seq = push % len(task.spaces), task.after + 1 + push // len(task.spaces)
            path = task.push_path.format(space=task.spaces[space])
            body = workloads[space].push()
            time.sleep(max(0.0, began + push / PUSHES_PER_SECOND - time.perf_counter()))
            pusher.send(request("POST", path, body))
            times += self._arrivals(pusher, space, seq, following[space])
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        p50, p99 = percentiles(times)
        return Arrivals(p50 * 1_000, p99 * 1_000, number, cpu)

    def _arrivals(self, pusher: Connection, space: int, seq: int, expected: int) -> list[float]:
        acknowledged_at: float | None = None
        arrived: list[float] = []
        deadline = time.perf_counter() + ANSWER_SECONDS_MAX
        while acknowledged_at is None or len(arrived) < expected:
            for key, _ in self.selector.select(1):
                if key.data is None:
                    if pusher.receive() is not None:
                        acknowledged_at = time.perf_counter()
                    continue
                stream: Stream = key.data
                found = _ID.findall(stream.receive())
                if found:
                    if stream.space != space or [int(each) for each in found] != [seq]:
                        raise BenchmarkFailed(f"{seq} was pushed, {stream.received!r} has come")
                    arrived.append(time.perf_counter())
                    stream.received = b""
            if time.perf_counter() > deadline:
                raise BenchmarkFailed(f"{seq} came to {len(arrived)} of {expected} streams")
        return [at - acknowledged_at for at in arrived]


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    clients = Clients(task)
    if task.push_path:
        print(msgspec.json.encode(clients.follow()).decode(), flush=True)
    else:
        print("{}", flush=True)
        sys.stdin.readline()  # the parent process sends a line to end this one


if __name__ == "__main__":
    main()
