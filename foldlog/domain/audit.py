"""Audits a log from its stored bytes: every hash, number, time and erasure, up to the root.

The audit trusts only the bytes of the events and their salts. To verify a log, compare the root
that it computes with the root of a checkpoint that was signed or saved.
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

#: the errors of decoding forged or damaged bytes
MALFORMED_ERRORS = (
    *(ValueError, KeyError, TypeError, AssertionError, RecursionError),
    msgspec.MsgspecError,
)


class Evidence(NamedTuple):
    """A stored event. `ops_hash` is the stored hash, if the source of the event provides it."""

    state: bytes
    salt: bytes
    ops_hash: bytes | None = None


class WrongEvent(Exception):
    """The first event that is wrong, and the reason."""

    def __init__(self, seq: int, why: str):
        super().__init__(f"seq {seq}: {why}")
        self.seq = seq
        self.why = why


class AuditCursor(msgspec.Struct):
    """The position of an audit, with all data that is needed to resume there."""

    seq: int = 0
    received_at: str = ""
    #: the unfinished tiles of the tree, lowest level first, in hex
    edge: list[str] = []
    #: the records that were erased so far, each with its last `record-erased` event
    erased: list[tuple[Key, int]] = []
    #: records with erased operations that lack a `record-erased` event so far, each with the first
    #: seq
    owing: list[tuple[Key, int]] = []
    #: false if the audit began later in the log; an earlier event may have erased a record then
    is_from_first: bool = True

    @classmethod
    def at(cls, seq: int, tiles: Mapping[Tile, bytes]) -> AuditCursor:
        """A position after `seq`. The tiles are trusted until the root is compared.

        Raises `InvalidProof` if the tiles belong to another tree.
        """
        cut = {tile: tiles.get(tile, b"")[: tile.width(seq) * 32] for tile in edge_tiles(seq)}
        TreeBuilder(seq, cut)
        edge = [cut[tile].hex() for tile in edge_tiles(seq)]
        return cls(seq, "", edge, is_from_first=seq == 0)


class Erasures:
    """Tracks the values that were removed from a log, and the events that allow it.

    An erased operation states its own commitment, so its leaf is right in any case. The removal is
    legitimate if the changeset had not seen a `record-erased` event of the record: the event came
    later, or it was already in the log when the changeset arrived. Only an append can add such an
    event.
    """

    def __init__(
        self, erased: Iterable[tuple[Key, int]] = (), owing: Iterable[tuple[Key, int]] = ()
    ):
        self.erased = dict(erased)  #: the last erasure of each record
        self.owing = dict(
            owing
        )  #: the first seq that lacks values, for records that still lack an erasure

    def note(self, seq: int, state: bytes) -> None:
        """Reads the next event."""
        if b'erased"' not in state:  # it lacks `"erased":` and `"kind":"record-erased"`
            return
        event = decode_event(state)
        for op in event.ops:
            if op.erased is not UNSET and self.erased.get(op.key, 0) <= event.base:
                self.owing.setdefault(op.key, seq)
        if event.erased_key is not None:
            self.erased[event.erased_key] = seq
            self.owing.pop(event.erased_key, None)

    def check(self) -> None:
        """To be called at the end of a log. Raises `WrongEvent` for values that were removed
        without an erasure."""
        if self.owing:
            (collection, id), seq = min(self.owing.items(), key=lambda owing: owing[1])
            raise WrongEvent(
                seq, f"values of {collection}/{id} are missing, and no event erased it"
            )


class LogAudit:
    """Checks the events of one log, in order."""

    def __init__(self, start: AuditCursor | None = None):
        """Raises `InvalidProof` if `start` is impossible."""
        start = start or AuditCursor()
        tiles = edge_tiles(start.seq)
        if len(tiles) != len(start.edge):
            raise InvalidProof(
                f"these are other tiles than the unfinished ones of a tree of {start.seq}"
            )
        edge = {tile: bytes.fromhex(hashes) for tile, hashes in zip(tiles, start.edge, strict=True)}
        self._builder = TreeBuilder(start.seq, edge)
        self._received_at = start.received_at
        self._erasures = Erasures(start.erased, start.owing)
        self._is_from_first = start.is_from_first

    @property
    def seq(self) -> int:
        """The last event that was checked."""
        return self._builder.size

    @property
    def root(self) -> bytes:
        return self._builder.root()

    @property
    def cursor(self) -> AuditCursor:
        return AuditCursor(
            self.seq,
            self._received_at,
            [tile.hex() for tile in self._builder.edge],
            sorted(self._erasures.erased.items()),
            sorted(self._erasures.owing.items()),
            self._is_from_first,
        )

    def check(self, evidence: Iterable[Evidence]) -> dict[Tile, bytes]:
        """Checks the next events and returns the tiles that have changed.

        Raises `WrongEvent`. The events before the wrong one then count as checked.
        """
        leaves: list[bytes] = []
        for expected, (state, salt, stored) in enumerate(evidence, self.seq + 1):
            try:
                seq, received_at, header, operations = committed(state)
                if seq != expected:
                    raise ValueError(
                        f"the log continues with {seq}: events are missing or out of order"
                    )
                if received_at < self._received_at:
                    raise ValueError(f"received at {received_at}, before {self._received_at}")
                hash = proofs.ops_hash(salt, operations)
                if stored is not None and hash != stored:
                    raise ValueError("the leaf commits to other operations")
                self._erasures.note(seq, state)
            except MALFORMED_ERRORS as exc:
                self._builder.append(leaves)
                why = str(exc) or "its salt has a wrong length"
                raise WrongEvent(expected, why) from exc
            self._received_at = received_at
            leaves.append(proofs.leaf_hash(proofs.leaf_of(header, hash)))
        return self._builder.append(leaves)

    @property
    def is_settled(self) -> bool:
        """Whether each removed value is covered by an erasure.

        If a record is erased while the audit reads the log, the event that covers it comes later.
        If the audit began in the middle of the log, an earlier event may cover the value, so the
        answer is true.
        """
        return not (self._is_from_first and self._erasures.owing)

    def check_erasures(self) -> None:
        """To be called at the end of a log. Raises `WrongEvent` unless the log `is_settled`."""
        if self._is_from_first:
            self._erasures.check()
