"""Reads and writes the members of a log archive, for tests that tamper with it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def read_members(file: Path | str) -> list[tuple[str, bytes]]:
    """Returns the names and contents, in the order of the archive."""
    with tarfile.open(file) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]


def write_members(file: Path | str, members: Iterable[tuple[str, bytes]]) -> str:
    """Writes an archive of these members, and returns its path."""
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(file)
