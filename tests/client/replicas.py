"""Replicas of one test, in files of its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldlog.client.replica import Replica
from foldlog.client.transport.server import Server


@contextmanager
def replicas(
    folder: Path, space: str, server: Callable[[], Server | None]
) -> Iterator[Callable[..., Replica]]:
    """Gives a function that opens a replica by the name of its file; the same name opens the same
    file again. `server` makes the server of a replica that is opened without one. All replicas are
    closed at the end.
    """
    opened: list[Replica] = []

    def open_replica(name: str, **options: Any) -> Replica:
        if "server" not in options:
            options["server"] = server()
        opened.append(Replica(folder / f"{name}.db", space=space, **options))
        return opened[-1]

    yield open_replica
    for replica in opened:
        replica.close()
