"""What is pushed: notes of a to-do app, about 260 bytes a changeset.

Made from text and not by a JSON encoder: the generator shares two cores with what it measures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import NamedTuple

_TEXT = (
    "buy milk bread call Anna about the invoice fix garden fence write report send parcel "
    "book train ticket paint kitchen wall order new filter water plants clean bike renew "
    "passport plan trip read chapter review draft pay rent"
)
WORDS = _TEXT.split()

COLLECTION = "tasks"
#: each counts its own changesets; more than requests are ever under way, so none overtakes itself
DEVICES = 1_000
#: the devices' clock. Any moment does: what counts is that made_at and sent_at agree.
NOW = "2026-11-23T09:00:00.123Z"

_PUSH = '{"device":"%s","sent_at":"' + NOW + '","changesets":[%s]}'
_CHANGESET = (
    '{"id":"%s","counter":%d,"base":%d,"made_at":"' + NOW + '",'
    '"ops":[{"op":"put","collection":"' + COLLECTION + '","id":"%s","fields":{%s}}]}'
)
_FIELDS = '"title":"%s","priority":%d,"estimate":%s,"done":%s,"notes":"%s"'


class Item(NamedTuple):
    """A changeset as its parts: what every system is given, each in a form of its own."""

    device: str
    id: str
    counter: int
    base: int
    record: str
    fields: str  #: members of a JSON object, without its braces


class Workload:
    """Makes pushes whose changesets nobody has made before; the same seed, the same content."""

    def __init__(self, seed: int | str):
        self._random = random.Random(seed)
        self._devices = [self.uuid() for _ in range(DEVICES)]
        self._counters = [0] * DEVICES
        self._turn = 0

    def uuid(self) -> str:
        """Of now, as our client library makes them: version 7 (RFC 9562)."""
        digits = f"{time.time_ns() // 1_000_000:012x}{self._random.getrandbits(80):020x}"
        return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def push(self, changesets: int = 1) -> bytes:
        """Creates that many records, all of one device."""
        return push_of(self.items(changesets))

    def items(self, number: int) -> list[Item]:
        """The parts of such a push."""
        return self._items([self.uuid() for _ in range(number)], base=0)

    def history(
        self, events: int, changesets_per_push: int, *, writes_per_record: int = 2
    ) -> Iterator[list[Item]]:
        """The items of one push after another.

        Each record is created, and then updated so many times, each round in another order.
        Whoever updates has pulled all that is there, as apps do before their user edits.
        """
        records = [self.uuid() for _ in range(events // writes_per_record)]
        everything = list(records)
        for _ in range(writes_per_record - 1):
            everything += self._random.sample(records, len(records))
        for base in range(0, len(everything), changesets_per_push):
            yield self._items(everything[base : base + changesets_per_push], base=base)

    def _items(self, records: list[str], base: int) -> list[Item]:
        device = self._turn % DEVICES
        self._turn += 1
        return [self._item(device, base, record) for record in records]

    def _item(self, device: int, base: int, record: str) -> Item:
        self._counters[device] += 1
        pick = self._random.random
        words = [WORDS[int(pick() * len(WORDS))] for _ in range(5)]
        fields = _FIELDS % (
            " ".join(words[:4]),
            int(pick() * 10),
            int(pick() * 400) / 4,
            "true" if pick() < 0.5 else "false",
            words[4],
        )
        counter = self._counters[device]
        return Item(self._devices[device], self.uuid(), counter, base, record, fields)


def push_of(items: list[Item]) -> bytes:
    """The body of a push."""
    changesets = ",".join(
        [_CHANGESET % (i.id, i.counter, i.base, i.record, i.fields) for i in items]
    )
    return (_PUSH % (items[0].device, changesets)).encode()
