"""What an adapter says, and how any system that speaks HTTP is driven."""

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
    """A system under the same work. `place` is what each has for our spaces; it begins empty."""

    name: ClassVar[str]

    def __init__(self, bench: Bench):
        self.bench = bench
        self._places = 0

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """The server, started and ready. Raises `Skipped` if it is not installed."""

    @abstractmethod
    def push(self, changesets: int, connections: int) -> Figure: ...

    @abstractmethod
    def fill(self) -> str:
        """A place with as many items as the scale says."""

    @abstractmethod
    def pull(self, place: str, encoding: str) -> Figure:
        """A new client takes all of that, page by page."""

    @abstractmethod
    def poll(self, place: str, connections: int) -> Figure:
        """Clients that have all of that ask for more."""

    def new_place(self) -> str:
        self._places += 1
        return f"place{self._places}"


class HttpPeer(Peer):
    """An adapter says how things are asked for, and what was answered."""

    #: others may refuse or lose some under load; it is told, and taken off their rates
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
        """How many parts of a request for many were stored."""

    @abstractmethod
    def stored(self, place: str) -> int: ...

    @abstractmethod
    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        """The request for what follows the cursor; that of a new client is `None`."""

    @abstractmethod
    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        """How many items came, and the cursor after them."""

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
        figure.value *= stored / (load.answers - load.refused)  # not all of a request may be
        figure.missing = 1 - stored / (load.answers * changesets)
        return figure

    def _requests(
        self, place: str, workload: Workload, number: int, changesets: int
    ) -> Sequence[bytes]:
        if changesets == 1:
            return [self.one(place, workload.items(1)[0]) for _ in range(number)]
        return [self.many(place, workload.items(changesets)) for _ in range(number)]

    def _stored(self, place: str, acknowledged: int) -> int:
        """What counts: what is acknowledged and there. With us, one is the other or we fail."""
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
    """A program among the peers; raises `Skipped` where it is not."""
    found = INSTALLED.joinpath(*path)
    if not found.exists():
        raise Skipped(f"no {found.name} in {INSTALLED.relative_to(INSTALLED.parents[1])}")
    return str(found)


@contextmanager
def server(
    command: Sequence[str], folder: Path, port: int, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A process that listens on a port; ended with all that it started."""
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
