"""The rows: Foldlog, compared with the other systems under the same work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..bench import Bench
from ..cells import Measure, Row
from ..errors import Skipped
from ..figures import Figure
from .foldlog import Foldlog
from .kinto import Kinto
from .peer import Peer
from .pocketbase import PocketBase
from .pouchdb import PouchDB
from .umadb import UmaDB

OTHERS: tuple[type[Peer], ...] = (Kinto, PocketBase, PouchDB, UmaDB)
COMPRESSED = "zstd, br, gzip"

_Work = Callable[[Peer, str], Figure]


class _Running:
    """The running systems, each with a filled place. They run until the end."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self._peers: dict[type[Peer], Peer | Skipped] = {}
        self._places: dict[type[Peer], str] = {}

    def get(self, kind: type[Peer]) -> Peer:
        if kind not in self._peers:
            peer = kind(self._bench)
            try:
                self._bench.stack.enter_context(peer.running())
                self._peers[kind] = peer
            except Skipped as exc:
                self._peers[kind] = exc
        found = self._peers[kind]
        if isinstance(found, Skipped):
            raise found
        return found

    def place(self, kind: type[Peer]) -> str:
        if kind not in self._places:
            self._places[kind] = self.get(kind).fill()
        return self._places[kind]


def push(kind: type[Peer], changesets: int, connections: int) -> Measure:
    return lambda bench: bench.once(_Running).get(kind).push(changesets, connections)


def pull(kind: type[Peer], encoding: str) -> Measure:
    def measure(bench: Bench) -> Figure:
        running = bench.once(_Running)
        return running.get(kind).pull(running.place(kind), encoding)

    return measure


def size(kind: type[Peer], encoding: str) -> Measure:
    """Measures only the bytes of a pull."""

    def measure(bench: Bench) -> Figure:
        figure = pull(kind, encoding)(bench)
        if figure.bytes_each is None:
            raise Skipped(f"{kind.name} does not show the bytes of its wire")
        return Figure(figure.bytes_each)

    return measure


def poll(kind: type[Peer], connections: int) -> Measure:
    def measure(bench: Bench) -> Figure:
        running = bench.once(_Running)
        return running.get(kind).poll(running.place(kind), connections)

    return measure


def _row(
    title: str,
    unit: str,
    work: Callable[[type[Peer]], Measure],
    *,
    less_is_better: bool = False,
) -> Row:
    return Row(
        "peers",
        title,
        unit,
        work(Foldlog),
        {peer.name: work(peer) for peer in OTHERS},
        less_is_better=less_is_better,
        is_bare=False,
        is_long=True,
    )


ROWS = (
    _row(
        "beside others: push, 1 a request, 1 connection",
        "changesets/s",
        partial(push, changesets=1, connections=1),
    ),
    _row(
        "beside others: push, 1 a request, 32 connections",
        "changesets/s",
        partial(push, changesets=1, connections=32),
    ),
    _row(
        "beside others: push, 100 a request, 8 connections",
        "changesets/s",
        partial(push, changesets=100, connections=8),
    ),
    _row("beside others: catch-up, plain", "items/s", partial(pull, encoding="identity")),
    _row(
        "beside others: catch-up, compressed as offered",
        "items/s",
        partial(pull, encoding=COMPRESSED),
    ),
    _row(
        "beside others: bytes of a catch-up, compressed as offered",
        "bytes an item",
        partial(size, encoding=COMPRESSED),
        less_is_better=True,
    ),
    _row("beside others: idle poll, 32 connections", "requests/s", partial(poll, connections=32)),
)
