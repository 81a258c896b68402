"""The demo's input: the history of a public git repository as changesets, with a known answer.

A commit's author is a device; a file is a record of the collection `files`. Some commits carry
the tree that git says was there right after them, so that a wrong fold cannot hide.
"""

from __future__ import annotations

import gzip
import hashlib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import msgspec

HISTORY = "flask-history.jsonl.gz"
#: ids of the changesets follow from what they are, so that a second run repeats the first
NAMESPACE = uuid.UUID("7a1f6d5e-0d3c-5c39-9a40-6f6c64656d6f")


class Tree(msgspec.Struct):
    """What git says the records are: how many files, and the hash of their list."""

    files: int
    sha256: str


class Commit(msgspec.Struct):
    device: str
    counter: int
    time: int  #: seconds since 1970
    ops: list[dict[str, Any]]
    tree: Tree | None = None

    @property
    def id(self) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self.device}/{self.counter}"))

    def changeset(self, base: int) -> dict[str, Any]:
        made_at = datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")
        return {
            "id": self.id,
            "counter": self.counter,
            "base": base,
            "made_at": made_at,
            "ops": self.ops,
        }


def read_history() -> list[Commit]:
    raw = gzip.decompress((files(__package__) / HISTORY).read_bytes())
    decode = msgspec.json.Decoder(Commit).decode
    return [decode(line) for line in raw.splitlines()]


def tree_of(records: Iterable[dict[str, Any]]) -> Tree:
    """The tree of live records of the collection `files`, as their `fields`."""
    lines = sorted((r["path"], f"{r['path']}\t{r['mode']}\t{r['blob']}\n") for r in records)
    text = "".join(line for _, line in lines)
    return Tree(len(lines), hashlib.sha256(text.encode()).hexdigest())
