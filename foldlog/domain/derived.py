"""Computes the rows that the service keeps beside a log, from the events of the log alone.

The service finds events by columns beside their bytes, and decides pushes and requests by small
tables: devices, tokens, erasures, skipped events and collections. All of these follow from the
events. `foldlog verify` computes them here and compares them with the stored ones, because a
changed column could hide an event from a reader, or let a revoked device write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec
from msgspec import UNSET

from .access import (
    DEVICE_REGISTERED,
    DEVICE_REVOKED,
    TOKEN_GRANTED,
    TOKEN_REVOKED,
    DeviceRegistered,
    DeviceRevokedBody,
    TokenGranted,
    TokenRevoked,
)
from .collections import KIND as COLLECTION_DEFINED
from .collections import definition_of
from .events import EVENT_SKIPPED, RECORD_ERASED, Event
from .json_schema import JsonSchema
from .proofs import ERASED_MEMBER_BYTES
from .times import parse_time

#: The values of a row by the names of its columns. Ids are text, hashes hex, and times ms.
Row = dict[str, Any]
#: The key of a row: the values of its key columns, without the space and the generation.
RowKey = tuple[str | int, ...]


class Rows(Protocol):
    """The rows of a table by their keys."""

    def get(self, key: RowKey, /) -> Row | None: ...
    def __setitem__(self, key: RowKey, row: Row, /) -> None: ...
    def items(self) -> Iterable[tuple[RowKey, Row]]: ...


#: in the place of a value that the events do not contain
UNPROVABLE = "(not provable)"


def columns_of(event: Event) -> Row:
    """Returns the columns that the table `events` has beside the bytes of an event.

    Raises `ValueError` if a time or a body of the event is invalid.
    """
    has_ops = event.body is UNSET
    return {
        "topic": f"{event.kind}/{event.form}",
        "event_id": event.id,
        "device": None if event.device is UNSET else event.device,
        "received_at_ms": parse_time(event.received_at),
        "collections": sorted({op.collection for op in event.ops}) if has_ops else None,
    }


class Derived:
    """Computes the rows of the tables `devices`, `tokens`, `erasures`, `skipped` and `collections`,
    and the counters of the space.

    `new_rows(n)` makes an empty mapping for the rows of one table whose keys have `n` columns. Call
    `add` with every event of the log in order.
    """

    def __init__(self, new_rows: Callable[[int], Rows]):
        self.devices = new_rows(1)
        self.tokens = new_rows(1)
        self.erasures = new_rows(2)
        self.skipped = new_rows(1)
        self.collections = new_rows(2)
        self.granted_seqs: Rows = new_rows(1)  #: the seq of the grant of each token
        self.head = 0
        self.received_at_ms = 0
        self.erased_seq = 0
        self.event_bytes_min = 0  #: the largest event, without what an erasure may have added

    def add(self, event: Event, size: int) -> None:
        """Adds the next event of the log. `size` is the number of its bytes.

        Raises `ValueError` or `msgspec.ValidationError` if the body of the event is invalid.
        """
        self.head = event.seq
        self.received_at_ms = parse_time(event.received_at)
        if event.body is UNSET:
            self._add_changeset(event, size)
            return
        self.event_bytes_min = max(self.event_bytes_min, size)
        add = _ADDERS.get(event.kind)
        if add is not None:
            add(self, event)

    @property
    def tables(self) -> Iterator[tuple[str, Rows]]:
        """Yields the name and the expected rows of each table."""
        for name in ("devices", "tokens", "erasures", "skipped", "collections"):
            yield name, getattr(self, name)

    def _add_changeset(self, event: Event, size: int) -> None:
        erased = sum(op.erased is not UNSET for op in event.ops)
        size -= erased * ERASED_MEMBER_BYTES
        self.event_bytes_min = max(self.event_bytes_min, size)
        if event.device is not UNSET and event.counter is not UNSET:
            self._update_device(event.device, {"counter": event.counter})

    def _update_device(self, device: str, changes: Row) -> None:
        row = self.devices.get((device,)) or dict(NEW_DEVICE)
        self.devices[(device,)] = row | changes

    def _register(self, event: Event) -> None:
        body = msgspec.convert(event.body, DeviceRegistered)
        row = self.devices.get((body.device,)) or NEW_DEVICE
        at = row["registered_at_ms"]
        self._update_device(
            body.device,
            {
                "name": row["name"] if body.name is None else body.name,
                "registered_at_ms": self.received_at_ms if at is None else at,
            },
        )

    def _revoke_device(self, event: Event) -> None:
        body = msgspec.convert(event.body, DeviceRevokedBody)
        at = (self.devices.get((body.device,)) or NEW_DEVICE)["revoked_at_ms"]
        now = self.received_at_ms
        self._update_device(body.device, {"revoked_at_ms": now if at is None else at})

    def _grant(self, event: Event) -> None:
        body = msgspec.convert(event.body, TokenGranted)
        self.granted_seqs[(body.token,)] = {"seq": event.seq}
        self.tokens[(body.token,)] = {
            "digest": UNPROVABLE if body.digest is None else body.digest,
            "role": body.role,
            "device": body.device,
            "name": body.name,
            "granted_at_ms": self.received_at_ms,
            "granted_by": body.by,
            "expires_at_ms": None if body.expires_at is None else parse_time(body.expires_at),
            "revoked_at_ms": None,
            "revoked_by": None,
            "revoked_reason": None,
        }

    def _revoke_token(self, event: Event) -> None:
        body = msgspec.convert(event.body, TokenRevoked)
        row = self.tokens.get((body.token,))
        if row is not None:
            self.tokens[(body.token,)] = row | {
                "revoked_at_ms": self.received_at_ms,
                "revoked_by": body.by,
                "revoked_reason": body.reason,
            }

    def _erase(self, event: Event) -> None:
        key = event.erased_key
        assert key is not None
        self.erasures[key] = {"seq": event.seq}
        self.erased_seq = event.seq

    def _skip(self, event: Event) -> None:
        seq = event.skipped_seq
        assert seq is not None
        if self.skipped.get((seq,)) is None:
            self.skipped[(seq,)] = {"by_seq": event.seq}

    def _define(self, event: Event) -> None:
        defined = definition_of(event)
        self.collections[(defined.collection, defined.version)] = {
            "seq": defined.seq,
            "digest": JsonSchema(defined.schema).digest,
            "schema": msgspec.json.encode(defined.schema).decode(),
            "defined_at": defined.defined_at,
            "defined_by": None if defined.by is UNSET else defined.by,
            "is_forced": defined.forced,
        }


#: a device that has neither counted, nor been registered, nor revoked
NEW_DEVICE: Row = {"counter": 0, "name": None, "registered_at_ms": None, "revoked_at_ms": None}

_ADDERS: dict[str, Callable[[Derived, Event], None]] = {
    DEVICE_REGISTERED: Derived._register,
    DEVICE_REVOKED: Derived._revoke_device,
    TOKEN_GRANTED: Derived._grant,
    TOKEN_REVOKED: Derived._revoke_token,
    COLLECTION_DEFINED: Derived._define,
    RECORD_ERASED: Derived._erase,
    EVENT_SKIPPED: Derived._skip,
}
