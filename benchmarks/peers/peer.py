"""The interface of an adapter, and the load for systems with HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from foldlog.scripts.server.process import environment, reserve_port

from .. import bare
from ..bench import Bench
from ..cells import DECODERS, requests_max
from ..connection import Answer, Connection, request
from ..errors import BenchmarkFailed, Skipped
from ..figures import Figure
from ..load import drive
from ..workload import Item, Workload

INSTALLED = Path(__file__).parents[2] / "build" / "peers"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
PAGE = 1_000


class Peer(ABC):
    """A system under the same work. Its `place` is the counterpart of a space, empty at first."""

    name: ClassVar[str]

    def __init__(self, bench: Bench):
        self.bench = bench
        self._places = 0

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """Starts the server and waits until it is ready. Raises `Skipped` if it is missing."""

    @abstractmethod
    def push(self, changesets: int, connections: int) -> Figure: ...

    @abstractmethod
    def fill(self) -> str:
        """Fills a place with the items of the scale."""

    @abstractmethod
    def pull(self, place: str, encoding: str) -> Figure:
        """A new client pulls all items, page by page."""

    @abstractmethod
    def poll(self, place: str, connections: int) -> Figure:
        """Clients that have all items poll for new ones."""

    def new_place(self) -> str:
        self._places += 1
        return f"place{self._places}"


class HttpPeer(Peer):
    """A system with HTTP. The adapter makes the requests and reads the answers."""

    #: whether the system may refuse or lose items, which are subtracted from its rate
    is_strict = False
    port: int

    @abstractmethod
    def make(self, place: str) -> None: ...

    @abstractmethod
    def one(self, place: str, item: Item) -> bytes:
        """The request that stores a changeset."""

    @abstractmethod
    def many(self, place: str, items: list[Item]) -> bytes: ...

    @abstractmethod
    def accepted(self, answer: bytes) -> int:
        """The number of stored items in an answer to a request for many."""

    @abstractmethod
    def stored(self, place: str) -> int: ...

    @abstractmethod
    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        """The request for the items after the cursor. A new client has the cursor `None`."""

    @abstractmethod
    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        """The number of items in an answer, and the cursor after them."""

    def push(self, changesets: int, connections: int) -> Figure:
        place, workload = self.new_place(), Workload(f"{self.name} {changesets} {connections}")
        self.make(place)
        seconds = self.bench.scale.seconds
        number = requests_max(self.bench, changesets)
        requests = self._requests(place, workload, number, changesets)
        self.bench.checkpoint()
        load = drive(
            self.port,
            requests,
            connections=connections,
            seconds=seconds,
            count=self.accepted if changesets > 1 else _one,
            answers_min=connections,
            is_lenient=not self.is_strict,
        )
        stored = self._stored(place, load.counted)
        figure = bare.figure_of(load)
        figure.value *= stored / (load.answers - load.refused)  # a part of a request may be refused
        figure.missing = 1 - stored / (load.answers * changesets)
        return figure

    def _requests(
        self, place: str, workload: Workload, number: int, changesets: int
    ) -> Sequence[bytes]:
        if changesets == 1:
            return [self.one(place, workload.items(1)[0]) for _ in range(number)]
        return [self.many(place, workload.items(changesets)) for _ in range(number)]

    def _stored(self, place: str, acknowledged: int) -> int:
        """The items that are acknowledged and stored. For Foldlog the two must be equal."""
        stored = self.stored(place)
        if self.is_strict and stored != acknowledged:
            raise BenchmarkFailed(f"{self.name}: {acknowledged} acknowledged, {stored} stored")
        return min(stored, acknowledged)

    def fill(self) -> str:
        place, workload = self.new_place(), Workload(f"{self.name} items")
        self.make(place)
        batches = self.bench.scale.items // 100
        requests = self._requests(place, workload, batches, 100)
        with closing(Connection(self.port)) as connection:
            accepted = sum(self.accepted(connection.ask(each).body) for each in requests)
        if self._stored(place, accepted) != self.bench.scale.items:
            raise BenchmarkFailed(f"{self.name}: {accepted} of {self.bench.scale.items} stored")
        return place

    def pull(self, place: str, encoding: str) -> Figure:
        items, size, cursor = 0, 0, None
        cpu, started = time.process_time(), time.perf_counter()
        with closing(Connection(self.port)) as connection:
            while items < self.bench.scale.items:
                answer = connection.ask(self.page(place, cursor, encoding))
                size += answer.bytes_received
                count, cursor = self.read(answer, DECODERS[answer.encoding](answer.body), cursor)
                if not count:
                    raise BenchmarkFailed(f"{self.name}: only {items} items came")
                items += count
        seconds = time.perf_counter() - started
        cpu = (time.process_time() - cpu) / seconds
        return Figure(items / seconds, generator_cpu=cpu, bytes_each=size / items)

    def poll(self, place: str, connections: int) -> Figure:
        items, cursor = 0, None
        with closing(Connection(self.port)) as connection:
            while items < self.bench.scale.items:
                answer = connection.ask(self.page(place, cursor, "identity"))
                count, cursor = self.read(answer, answer.body, cursor)
                items += count
            idle = self.page(place, cursor, "identity")
            answer = connection.ask(idle)
            if self.read(answer, answer.body, cursor)[0]:
                raise BenchmarkFailed(f"{self.name}: a client that has all is told more")
        return bare.figure_of(
            drive(
                self.port,
                [idle],
                connections=connections,
                seconds=self.bench.scale.seconds,
                again=True,
            )
        )

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        with closing(Connection(self.port)) as connection:
            return connection.ask(request(method, path, body, headers=headers))


def _one(_: bytes) -> int:
    return 1


def installed(*path: str) -> str:
    """The path of an installed program. Raises `Skipped` if it is missing."""
    found = INSTALLED.joinpath(*path)
    if not found.exists():
        raise Skipped(f"no {found.name} in {INSTALLED.relative_to(INSTALLED.parents[1])}")
    return str(found)


@contextmanager
def server(
    command: Sequence[str], folder: Path, port: int, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Runs a server process, and ends it with all its children."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(), **(env or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(port, process, folder)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            Connection(port).close()
            return
        except OSError:
            time.sleep(0.1)
    said = (folder / "server.log").read_text("utf-8", "replace")[-2_000:]
    raise BenchmarkFailed(f"{process.args!r} did not come up:\n{said}")


__all__ = ["PAGE", "HttpPeer", "Peer", "installed", "reserve_port", "server"]
