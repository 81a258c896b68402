"""UmaDB: an event store that speaks gRPC, through its own client library.

The client library is installed with the peers, so a separate process uses it: `umadb_driver.py`,
on the Python of the peers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BenchmarkFailed
from ..figures import Figure
from .peer import PAGE, Peer, installed, reserve_port, server

DRIVER = "benchmarks.peers.umadb_driver"


class UmaDB(Peer):
    name = "UmaDB"

    @contextmanager
    def running(self) -> Iterator[None]:
        command = installed("bin", "umadb")
        port = reserve_port()
        self._url = f"http://127.0.0.1:{port}"
        folder = self.bench.data / "umadb"
        serve = [command, "--listen", f"127.0.0.1:{port}", "--db-path", str(folder / "data")]
        with server(serve, folder, port):
            yield

    def push(self, changesets: int, connections: int) -> Figure:
        return self._drive("push", changesets, connections)

    def fill(self) -> str:
        """UmaDB has one log with all earlier pushes, so a pull reads the last items."""
        self._drive("fill", self.bench.scale.items)
        return ""

    def pull(self, place: str, encoding: str) -> Figure:
        return self._drive("pull", self.bench.scale.items, PAGE)

    def poll(self, place: str, connections: int) -> Figure:
        return self._drive("poll", connections)

    def _drive(self, *what: str | int) -> Figure:
        python = installed("bin", "python")
        words = [str(word) for word in (*what, self.bench.scale.seconds)]
        done = subprocess.run(
            [python, "-m", DRIVER, self._url, *words],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkFailed(done.stdout + done.stderr)
        return Figure(**json.loads(done.stdout))
