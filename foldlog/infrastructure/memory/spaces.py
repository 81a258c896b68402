"""Stores all spaces in memory.

`MemorySpaces` is the base class of all classes that implement a port (interface) in memory. The
class `MemoryStore` inherits all of these classes, so in a `MemoryStore` they use the same data.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from foldlog.domain.access import Device, devices_of
from foldlog.domain.collections import Definition
from foldlog.domain.erasure import erasures_of
from foldlog.domain.errors import LogBehind, UnknownSpace
from foldlog.domain.events import Envelope, LogEntry, decode_event
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import Conflict, Key, Record, fold
from foldlog.domain.merkle import Tile, TreeBuilder
from foldlog.domain.ports import AtLeast, SpaceId
from foldlog.domain.proofs import SALT_BYTES, leaf_hash
from foldlog.domain.space_state import SpaceState


def _new_state() -> SpaceState:
    return SpaceState(log=str(uuid.uuid4()))


@dataclass
class Space:
    """One space in memory: its log, and the data that is computed from its events."""

    state: SpaceState = field(default_factory=_new_state)
    entries: list[LogEntry] = field(default_factory=list)
    by_id: dict[str, LogEntry] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)  #: registered or revoked
    records: dict[Key, Record] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    erasures: dict[Key, int] = field(default_factory=dict)
    tree: TreeBuilder = field(default_factory=TreeBuilder)
    tiles: dict[Tile, bytes] = field(default_factory=dict)
    checkpoint: bytes = b""

    @property
    def log(self) -> str:
        return self.state.log

    @property
    def head(self) -> int:
        return self.state.head

    def append(self, entry: LogEntry) -> None:
        """Appends an entry to the log, and updates the data that is computed from the log."""
        self.state.advance([entry], {})
        self.entries.append(entry)
        self.by_id[entry.event_id] = entry
        for change in devices_of([entry]):
            device = self.devices.get(change.device, Device(device=change.device)).after(change)
            self.devices[device.device] = device
            if device.revoked_at is not None:
                self.state.revoked.add(device.device)
        if erasures := erasures_of([entry]):
            self.erasures |= erasures
            self.state.erased_seq = entry.seq
        self.conflicts += fold(self.records, decode_event(entry.state))
        self.tiles |= self.tree.append([leaf_hash(entry.leaf)])

    def mark(self, seq: int) -> str:
        """Returns the mark of the event with this seq, or an empty text if the event is missing."""
        return self.entries[seq - 1].mark if 0 < seq <= self.head else ""


@dataclass
class ServiceEventTransaction:
    """Lets the caller append one event of the service during a `with` block.

    The caller makes the event with the metadata in `envelope`, and calls `append` with the event.
    The event is written to the log when the block ends.
    """

    envelope: Envelope
    entry: LogEntry | None = None  #: the event to append at the end of the block

    def append(self, entry: LogEntry) -> None:
        self.entry = entry


class MemorySpaces:
    """Contains all spaces, and one lock that a thread must hold while it changes a space.

    `now_ms()` returns the current time in ms since 1970. Tests may pass another clock.
    """

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        limits: Limits = LIMITS,
    ):
        self._now_ms = now_ms
        self._limits = limits
        self._lock = Lock()
        self._spaces: dict[SpaceId, Space] = {}
        self._watchers: dict[SpaceId, list[Callable[[], None]]] = {}

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Registers the function `on_growth`, which is then called after each append to the space.

        Returns a function without parameters. Call the returned function to end the registration.
        """
        watchers = self._watchers.setdefault(space, [])
        watchers.append(on_growth)
        return lambda: watchers.remove(on_growth)

    def _announce(self, space: SpaceId) -> None:
        for on_growth in list(self._watchers.get(space, ())):
            on_growth()

    def _space(self, space: SpaceId, at_least: AtLeast = 0) -> Space:
        """Returns the data of a space.

        Raises `UnknownSpace` if the space is missing. Raises `LogBehind` if the head of its log is
        lower than `at_least`.
        """
        here = self._spaces.get(space)
        if here is None:
            raise UnknownSpace(space)
        if at_least is not None and here.head < at_least:
            raise LogBehind(f"seq {at_least} is beyond the log's head {here.head}", head=here.head)
        return here

    def _envelope(self, here: Space) -> Envelope:
        """Returns the metadata for the next event of the space: seq, id, time and salt."""
        return Envelope(
            seq=here.head + 1,
            id=str(uuid.uuid4()),
            received_at=here.state.next_received_at(self._now_ms()),
            salt=secrets.token_bytes(SALT_BYTES),
        )

    @contextmanager
    def _append_service_event(self, space: SpaceId) -> Iterator[ServiceEventTransaction]:
        """Opens a `with` block in which the caller may append one event of the service to a space.

        During the block, this thread has the lock of all spaces. If the caller calls `append` with
        an event, the event is added to the log when the block ends. A missing space is then
        created, and the functions that watch the space are called. If the caller appends no event,
        the space is unchanged.
        """
        with self._lock:
            here = self._spaces.get(space) or Space()
            transaction = ServiceEventTransaction(self._envelope(here))
            yield transaction
            if transaction.entry is not None:
                here.append(transaction.entry)
                self._spaces[space] = here
        if transaction.entry is not None:
            self._announce(space)
