"""Checking a log from its events: every hash, every number, every time, up to the root.

Nothing is believed but the bytes of the events and their salts. Whoever has a checkpoint that was
signed, or kept, compares its root with the one that comes out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from . import proofs
from .changesets import Key
from .events import committed, decode_event
from .merkle import InvalidProof, Tile, TreeBuilder, edge_tiles

#: what taking bytes apart raises if they are no event that we would have written
MALFORMED_ERRORS = (
    *(ValueError, KeyError, TypeError, AssertionError, RecursionError),
    msgspec.MsgspecError,
)


class Evidence(NamedTuple):
    """An event as it is stored. `ops_hash` is what is stored beside it, if that is at hand."""

    state: bytes
    salt: bytes
    ops_hash: bytes | None = None


class WrongEvent(Exception):
    """The first event that is not what it should be, and why."""

    def __init__(self, seq: int, why: str):
        super().__init__(f"seq {seq}: {why}")
        self.seq = seq
        self.why = why


class AuditCursor(msgspec.Struct):
    """How far a log was checked: all that is needed to go on from there."""

    seq: int = 0
    received_at: str = ""
    #: the unfinished tiles of the tree, from below, in hex
    edge: list[str] = []
    #: the records that were erased so far, each with the last event that said so
    erased: list[tuple[Key, int]] = []
    #: those of which operations are erased though no event said so yet, each with the first seq
    owing: list[tuple[Key, int]] = []
    #: whether it was checked from the first event on: else an erasure may have been said before
    is_from_first: bool = True

    @classmethod
    def at(cls, seq: int, tiles: Mapping[Tile, bytes]) -> AuditCursor:
        """After `seq`, by tiles that are believed until the root is compared.

        Raises `InvalidProof` if they are not of a tree of that size.
        """
        cut = {tile: tiles.get(tile, b"")[: tile.width(seq) * 32] for tile in edge_tiles(seq)}
        TreeBuilder(seq, cut)
        edge = [cut[tile].hex() for tile in edge_tiles(seq)]
        return cls(seq, "", edge, is_from_first=seq == 0)


class Erasures:
    """Which values are gone from a log, and which events say so.

    An erased operation states its commitment, so its leaf is right whoever erased it. What makes it
    an erasure is a `record-erased` event that its changeset had not seen: a later one, or one that
    was there when it came. Such an event only an append can bring.
    """

    def __init__(
        self, erased: Iterable[tuple[Key, int]] = (), owing: Iterable[tuple[Key, int]] = ()
    ):
        self.erased = dict(erased)  #: by which event last
        self.owing = dict(owing)  #: the first seq where values are gone, and no event has said so

    def note(self, seq: int, state: bytes) -> None:
        """The next event."""
        if b'erased"' not in state:  # neither `"erased":` nor `"kind":"record-erased"`
            return
        event = decode_event(state)
        for op in event.ops:
            if op.erased is not UNSET and self.erased.get(op.key, 0) <= event.base:
                self.owing.setdefault(op.key, seq)
        if event.erased_key is not None:
            self.erased[event.erased_key] = seq
            self.owing.pop(event.erased_key, None)

    def check(self) -> None:
        """At the end of a log. Raises `WrongEvent`."""
        if self.owing:
            (collection, id), seq = min(self.owing.items(), key=lambda owing: owing[1])
            raise WrongEvent(seq, f"values of {collection}/{id} are gone, and no event erased it")


class LogAudit:
    """Checks the events of one log, one after another."""

    def __init__(self, start: AuditCursor | None = None):
        """Raises `InvalidProof` if there can be no such place."""
        start = start or AuditCursor()
        tiles = edge_tiles(start.seq)
        if len(tiles) != len(start.edge):
            raise InvalidProof(f"not the unfinished tiles of a tree of {start.seq}")
        edge = {tile: bytes.fromhex(hashes) for tile, hashes in zip(tiles, start.edge, strict=True)}
        self._growth = TreeBuilder(start.seq, edge)
        self._received_at = start.received_at
        self._erasures = Erasures(start.erased, start.owing)
        self._is_from_first = start.is_from_first

    @property
    def seq(self) -> int:
        """The last one that was checked."""
        return self._growth.size

    @property
    def root(self) -> bytes:
        return self._growth.root()

    @property
    def cursor(self) -> AuditCursor:
        return AuditCursor(
            self.seq,
            self._received_at,
            [tile.hex() for tile in self._growth.edge],
            sorted(self._erasures.erased.items()),
            sorted(self._erasures.owing.items()),
            self._is_from_first,
        )

    def check(self, evidence: Iterable[Evidence]) -> dict[Tile, bytes]:
        """Checks the next events; returns the tiles that have changed. Raises `WrongEvent`.

        What is before the wrong one counts as checked.
        """
        leaves: list[bytes] = []
        for expected, (state, salt, stored) in enumerate(evidence, self.seq + 1):
            try:
                seq, received_at, header, operations = committed(state)
                if seq != expected:
                    raise ValueError(f"here comes {seq}: a hole, or another order")
                if received_at < self._received_at:
                    raise ValueError(f"received at {received_at}, before {self._received_at}")
                hash = proofs.ops_hash(salt, operations)
                if stored is not None and hash != stored:
                    raise ValueError("the operations are not those that the leaf commits to")
                self._erasures.note(seq, state)
            except MALFORMED_ERRORS as exc:
                self._growth.append(leaves)
                why = str(exc) or "its salt has another length"
                raise WrongEvent(expected, why) from exc
            self._received_at = received_at
            leaves.append(proofs.leaf_hash(proofs.leaf_of(header, hash)))
        return self._growth.append(leaves)

    @property
    def is_settled(self) -> bool:
        """Whether an event says of everything that is gone that it was erased.

        What was erased while the log is read, a later event says. If the first ones were passed
        over, one of those may have said it.
        """
        return not (self._is_from_first and self._erasures.owing)

    def check_erasures(self) -> None:
        """At the end of a log: raises `WrongEvent` unless it `is_settled`."""
        if self._is_from_first:
            self._erasures.check()
