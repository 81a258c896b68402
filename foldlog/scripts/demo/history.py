"""Reads the input of the demo: the history of a public git repository, converted to changesets.

Each author of commits is a device, and each file is a record of the collection `files`. For some
commits, the input also contains a `Tree`: the number of files in the repository after the commit,
and a hash of the list of these files. The demo compares the records with the `Tree`.
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
#: The ids of the changesets are derived, so that a second run pushes the same ids.
NAMESPACE = uuid.UUID("7a1f6d5e-0d3c-5c39-9a40-6f6c64656d6f")


class Tree(msgspec.Struct):
    """The number of files in the repository after a commit, and the SHA-256 hash (in hex) of the
    list of these files. Two equal `Tree` objects mean that the files are equal.
    """

    files: int
    sha256: str


class Commit(msgspec.Struct):
    """A commit of the git repository. The demo pushes the commit as one changeset. `device` is the
    id of the device that represents the author of the commit. `tree` summarizes the files after
    the commit, as git listed them; most commits have `None`.
    """

    device: str
    counter: int
    time: int  #: seconds since 1970
    ops: list[dict[str, Any]]
    tree: Tree | None = None

    @property
    def id(self) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self.device}/{self.counter}"))

    def changeset(self, base: int) -> dict[str, Any]:
        """Returns the changeset as a JSON object of the protocol. `base` is the seq of the last
        event that the device has received.
        """
        made_at = datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")
        return {
            "id": self.id,
            "counter": self.counter,
            "base": base,
            "made_at": made_at,
            "ops": self.ops,
        }


def read_history() -> list[Commit]:
    """Reads the history from the file that is part of this package."""
    raw = gzip.decompress((files(__package__) / HISTORY).read_bytes())
    decode = msgspec.json.Decoder(Commit).decode
    return [decode(line) for line in raw.splitlines()]


def tree_of(records: Iterable[dict[str, Any]]) -> Tree:
    """Returns the `Tree` of the files in `records`, to compare it with the `Tree` of a commit.

    `records` contains the fields (path, mode and blob) of each live record of the collection
    `files`. The hashed list has one line with these three values for each file, sorted by path.
    """
    lines = sorted((r["path"], f"{r['path']}\t{r['mode']}\t{r['blob']}\n") for r in records)
    text = "".join(line for _, line in lines)
    return Tree(len(lines), hashlib.sha256(text.encode()).hexdigest())
