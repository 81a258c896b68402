"""Audits a log from its stored bytes: checks every hash, seq, time and erasure, and computes the
root of the Merkle tree.

The audit reads only the bytes of the events and their salts. To verify a log, compare the computed
root with the root of a signed checkpoint, or with a root that you saved earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

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
    """A stored event that the audit checks. `ops_hash` is the hash of the event's operations that
    was stored with the event. The audit computes this hash again, and compares the two hashes if
    `ops_hash` is given."""

    state: bytes
    salt: bytes
    ops_hash: bytes | None = None


class WrongEvent(Exception):
    """Raised at the first event that fails the audit. `seq` is the seq of this event, and `why` is
    the reason."""

    def __init__(self, seq: int, why: str, tiles: Mapping[Tile, bytes] | None = None):
        super().__init__(f"seq {seq}: {why}")
        self.seq = seq
        self.why = why
        #: the tiles that the right events of the same batch changed
        self.tiles = tiles or {}


class AuditCursor(msgspec.Struct):
    """The state of an audit after event `seq`, with all data that is needed to continue the audit
    from there."""

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
        """Returns a cursor with which an audit starts in the middle of a log, after event `seq`.

        `tiles` maps the unfinished tiles of the Merkle tree over the first `seq` events to their
        hashes. The hashes are trusted here. If one of them is wrong, the audit computes a wrong
        root, and the comparison with a signed root fails. Raises `InvalidProof` if a tile is
        missing or has too few hashes.
        """
        cut = {tile: tiles.get(tile, b"")[: tile.width(seq) * 32] for tile in edge_tiles(seq)}
        TreeBuilder(seq, cut)
        edge = [cut[tile].hex() for tile in edge_tiles(seq)]
        return cls(seq, "", edge, is_from_first=seq == 0)


class Seqs(Protocol):
    """A mapping from the keys of records to seqs. Such mappings grow with the erasures of a log, so
    that a caller may keep them on the disk."""

    def get(self, key: Key, /) -> int | None: ...
    def __setitem__(self, key: Key, seq: int, /) -> None: ...
    def pop(self, key: Key, /) -> int | None: ...
    def items(self) -> Iterable[tuple[Key, int]]: ...


class Erasures:
    """Checks that each value that was removed from a log was removed by an erasure, which the log
    records as a `record-erased` event.

    The hashes alone cannot show this: an erased operation keeps its commitment, so all hashes stay
    right after any removal. A removal from a changeset is allowed in two cases:

    * A `record-erased` event of the record comes after the changeset.
    * A `record-erased` event of the record comes before the changeset, and its seq is higher than
      the changeset's `base`. The device made the changeset before it received the erasure, so the
      service removed the values before it stored the changeset.
    """

    def __init__(
        self,
        erased: Iterable[tuple[Key, int]] = (),
        owing: Iterable[tuple[Key, int]] = (),
        *,
        new_seqs: Callable[[], Seqs] = dict,
    ):
        #: the last erasure of each record
        self.erased = new_seqs()
        #: the first seq that lacks values, for records that still lack an erasure
        self.owing = new_seqs()
        self.owing_count = 0
        for key, seq in erased:
            self.erased[key] = seq
        for key, seq in owing:
            self._owe(key, seq)

    def _owe(self, key: Key, seq: int) -> None:
        if self.owing.get(key) is None:
            self.owing[key] = seq
            self.owing_count += 1

    def note(self, seq: int, state: bytes) -> None:
        """Reads the next event of the log. `state` contains the event's stored bytes.

        If the event is a `record-erased` event, the method adds the record to `erased` and removes
        it from `owing`. If the event has erased operations for which no matching `record-erased`
        event was read so far, the method adds their records to `owing`.
        """
        if b'erased"' not in state:  # it lacks `"erased":` and `"kind":"record-erased"`
            return
        event = decode_event(state)
        for op in event.ops:
            if op.erased is not UNSET and (self.erased.get(op.key) or 0) <= event.base:
                self._owe(op.key, seq)
        if event.erased_key is not None:
            self.erased[event.erased_key] = seq
            if self.owing.get(event.erased_key) is not None:
                self.owing.pop(event.erased_key)
                self.owing_count -= 1

    def check(self) -> None:
        """Raises `WrongEvent` if values were removed from the log and no `record-erased` event
        allows this. Call this method after the last event."""
        if self.owing_count:
            (collection, id), seq = min(self.owing.items(), key=lambda owing: owing[1])
            raise WrongEvent(
                seq, f"values of {collection}/{id} are missing, and no event erased it"
            )


class LogAudit:
    """Checks the events of one log in their order, and computes the root of the Merkle tree over
    them."""

    def __init__(self, start: AuditCursor | None = None, *, new_seqs: Callable[[], Seqs] = dict):
        """Continues an audit from the cursor `start`. If `start` is `None`, the audit starts at the
        first event. `new_seqs` makes the mappings in which the audit keeps erasures.

        Raises `InvalidProof` if the tiles in `start` belong to a tree of another size.
        """
        start = start or AuditCursor()
        tiles = edge_tiles(start.seq)
        if len(tiles) != len(start.edge):
            raise InvalidProof(
                f"these are other tiles than the unfinished ones of a tree of {start.seq}"
            )
        edge = {tile: bytes.fromhex(hashes) for tile, hashes in zip(tiles, start.edge, strict=True)}
        self._builder = TreeBuilder(start.seq, edge)
        self._received_at = start.received_at
        self._erasures = Erasures(start.erased, start.owing, new_seqs=new_seqs)
        self._is_from_first = start.is_from_first

    @property
    def seq(self) -> int:
        """Returns the seq of the last event that was checked, or 0."""
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
        """Checks the next events of the log. Returns a dict from each tile of the Merkle tree that
        these events changed to its new hashes.

        Raises `WrongEvent` at the first wrong event. The properties `seq` and `root` then cover
        only the events before the wrong event.
        """
        leaves: list[bytes] = []
        for expected, (state, salt, stored) in enumerate(evidence, self.seq + 1):
            try:
                parts = committed(state)
                if parts.seq != expected:
                    raise ValueError(
                        f"the log continues with {parts.seq}: events are missing or out of order"
                    )
                if parts.received_at < self._received_at:
                    raise ValueError(f"received at {parts.received_at}, before {self._received_at}")
                hash = parts.ops_hash(salt)
                if stored is not None and hash != stored:
                    raise ValueError("the leaf commits to other operations")
                self._erasures.note(parts.seq, state)
            except MALFORMED_ERRORS as exc:
                tiles = self._builder.append(leaves)
                why = str(exc) or "its salt has a wrong length"
                raise WrongEvent(expected, why, tiles) from exc
            self._received_at = parts.received_at
            leaves.append(proofs.leaf_hash(proofs.leaf_of(parts.header, hash)))
        return self._builder.append(leaves)

    @property
    def is_settled(self) -> bool:
        """Returns whether the audit has read a matching `record-erased` event for every removal of
        values that it has found so far.

        The property can be false for a short time if a record is erased while the audit runs: the
        audit has read the changeset without its values, but not yet the `record-erased` event. The
        caller must then pass further events to `check`.

        If the audit began in the middle of the log, the property is always true, because the
        `record-erased` event may come before the start of the audit.
        """
        return not (self._is_from_first and self._erasures.owing_count)

    def check_erasures(self) -> None:
        """Raises `WrongEvent` if values were removed from the log and no `record-erased` event
        allows this. Call this method after the last event.

        If the audit began in the middle of the log, this method does nothing, because the
        `record-erased` event may come before the start of the audit.
        """
        if self._is_from_first:
            self._erasures.check()
