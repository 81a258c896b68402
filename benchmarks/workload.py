"""The pushed data: notes of a to-do app, about 260 bytes a changeset.

Bodies are made from text instead of by a JSON encoder, because the generator shares two cores with
the service.
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
#: more than the open requests, so that two pushes of one device never overlap
DEVICES = 1_000
#: the clock of the devices: any moment, if made_at and sent_at agree
NOW = "2026-11-23T09:00:00.123Z"

_PUSH = '{"device":"%s","sent_at":"' + NOW + '","changesets":[%s]}'
_CHANGESET = (
    '{"id":"%s","counter":%d,"base":%d,"made_at":"' + NOW + '",'
    '"ops":[{"op":"put","collection":"' + COLLECTION + '","id":"%s","fields":{%s}}]}'
)
_FIELDS = '"title":"%s","priority":%d,"estimate":%s,"done":%s,"notes":"%s"'


class Item(NamedTuple):
    """The parts of a changeset. Each adapter gives them its system's form."""

    device: str
    id: str
    counter: int
    base: int
    record: str
    fields: str  #: the members of a JSON object between its braces


class Workload:
    """Makes pushes with new changesets. Equal seeds give equal content."""

    def __init__(self, seed: int | str):
        self._random = random.Random(seed)
        self._devices = [self.uuid() for _ in range(DEVICES)]
        self._counters = [0] * DEVICES
        self._turn = 0

    def uuid(self) -> str:
        """An id of version 7 (RFC 9562), as the client library makes it."""
        digits = f"{time.time_ns() // 1_000_000:012x}{self._random.getrandbits(80):020x}"
        return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def push(self, changesets: int = 1) -> bytes:
        """Makes a push of one device that creates so many records."""
        return push_of(self.items(changesets))

    def items(self, number: int) -> list[Item]:
        """The parts of the changesets of such a push."""
        return self._items([self.uuid() for _ in range(number)], base=0)

    def history(
        self, events: int, changesets_per_push: int, *, writes_per_record: int = 2
    ) -> Iterator[list[Item]]:
        """Yields the items of one push after another.

        Each record is created, then updated so many times, each round in another order. The base
        of an update is the whole log so far, as in apps that sync before their user edits.
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
