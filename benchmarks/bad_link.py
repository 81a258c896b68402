"""What a sync costs over a link that is cut again and again: bytes on the wire, cuts, and time.

    python -m benchmarks.bad_link [--megabytes N] [--cut-kilobytes N]

One device pushes records through a proxy to `foldlog serve`, and a second device loads them. The
proxy cuts the link each time after so many bytes in both directions together. Prints one line of
JSON for each direction. The bytes on the wire include the headers and each failed try.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from foldlog.client.errors import Unreachable
from foldlog.client.replica import Replica
from foldlog.client.transport.server import HttpServer
from foldlog.scripts.server.process import serving
from tests.client.proxy import Proxy, proxied

from .bench import COMMAND, UNLIMITED

MB = 1_000_000
SPACE = "home"
RECORD_BYTES = 20_000
#: one sync gives up after it made no progress; a device would then be tried again
TRIES_MAX = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=60, help="content of each direction")
    parser.add_argument("--cut-kilobytes", type=int, default=256, help="bytes between two cuts")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="foldlog-bench-") as folder,
        serving(COMMAND, folder, env=UNLIMITED) as url,
        proxied(url) as proxy,
    ):
        measure(Path(folder), proxy, options.megabytes * MB, options.cut_kilobytes * 1024)


def measure(folder: Path, proxy: Proxy, content: int, cut_after: int) -> None:
    with (
        _device(folder / "first.db", proxy) as first,
        _device(folder / "second.db", proxy) as second,
    ):
        compressed = _fill(first, content)
        proxy.cut_after = cut_after
        _report("up", compressed, proxy, lambda: _sync(first))
        _report("down", compressed, proxy, lambda: _sync(second))
        records = sum(1 for _ in second.collection("notes"))
        assert records == content // RECORD_BYTES, records


def _device(file: Path, proxy: Proxy) -> Replica:
    return Replica(file, space=SPACE, server=HttpServer(proxy.url, SPACE))


def _fill(replica: Replica, content: int) -> int:
    """Makes records of random digits. Returns the bytes of their texts after gzip, about 57 %."""
    rng = random.Random(1)
    compressed = 0
    notes = replica.collection("notes")
    for number in range(content // RECORD_BYTES):
        text = rng.randbytes(RECORD_BYTES // 2).hex()
        compressed += len(gzip.compress(text.encode()))
        notes.put(f"note-{number:06}", text=text)
    return compressed


def _sync(replica: Replica) -> int:
    """Syncs until all is done. Returns the number of tries."""
    for tries in range(1, TRIES_MAX + 1):
        try:
            replica.sync()
        except Unreachable:
            continue
        return tries
    raise SystemExit(f"no progress in {TRIES_MAX} tries")


def _report(way: str, compressed: int, proxy: Proxy, sync: Callable[[], int]) -> None:
    before, cuts, began = proxy.bytes, proxy.cuts, time.monotonic()
    tries = sync()
    figures = {
        "way": way,
        "content_bytes_after_gzip": compressed,
        "wire_bytes": proxy.bytes - before,
        "ratio": round((proxy.bytes - before) / compressed, 3),
        "cuts": proxy.cuts - cuts,
        "calls_of_sync": tries,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
