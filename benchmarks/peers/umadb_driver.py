"""Runs a load on UmaDB with its client library, and prints a figure as JSON.

python -m benchmarks.peers.umadb_driver URL LOAD SECONDS, where LOAD is push CHANGESETS CONNECTIONS,
fill ITEMS, pull ITEMS PAGE or poll CONNECTIONS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import quantiles
from threading import Thread
from typing import Any

import umadb  # type: ignore[import-not-found]

from benchmarks.workload import Item, Workload

RAMP_SECONDS = 0.3


def event(item: Item) -> Any:
    data = f'{{"device":"{item.device}","counter":{item.counter},{item.fields}}}'
    return umadb.Event(event_type="Put", data=data.encode(), tags=[f"task:{item.record}"])


def append(client: Any, items: list[Item]) -> None:
    """Appends on the condition that these records are new, as other systems check too."""
    events = [event(item) for item in items]
    unmade = umadb.Query([umadb.QueryItem(tags=each.tags) for each in events])
    client.append(events, umadb.AppendCondition(unmade))


def load(
    url: str, connections: int, seconds: float, work: Callable[[Any, Workload], None]
) -> dict[str, Any]:
    """Repeats the work, with a thread and a client for each connection."""
    times: list[float] = []
    counted = [0] * connections
    opens = time.perf_counter() + RAMP_SECONDS
    closes = opens + seconds

    def run(number: int) -> None:
        client = umadb.Client(url)
        workload = Workload(f"{time.time_ns()} {number}")
        while (began := time.perf_counter()) < closes:
            work(client, workload)
            counted[number] += 1
            if opens <= (now := time.perf_counter()) < closes:
                times.append(now - began)
        client.close()

    cpu = time.process_time()
    threads = [Thread(target=run, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = (time.process_time() - cpu) / (time.perf_counter() - opens + RAMP_SECONDS)
    cuts = quantiles(times, n=100, method="inclusive")
    figure = {"value": len(times) / seconds, "generator_cpu": cpu}
    figure |= {"p50_ms": cuts[49] * 1_000, "p99_ms": cuts[98] * 1_000}
    return {**figure, "counted": sum(counted)}


def push(url: str, changesets: int, connections: int, seconds: float) -> dict[str, Any]:
    before = umadb.Client(url).head() or 0
    figure = load(url, connections, seconds, lambda c, w: append(c, w.items(changesets)))
    stored = (umadb.Client(url).head() or 0) - before
    if stored != (acknowledged := figure.pop("counted") * changesets):
        sys.exit(f"UmaDB: {acknowledged} acknowledged, {stored} stored")
    figure["value"] *= changesets
    return figure


def fill(url: str, items: int, seconds: float) -> dict[str, Any]:
    client, workload = umadb.Client(url), Workload(f"{time.time_ns()}")
    for _ in range(items // 100):
        append(client, workload.items(100))
    return {"value": items}


def pull(url: str, items: int, page: int, seconds: float) -> dict[str, Any]:
    """Pulls the last items of the log. gRPC hides the bytes on the wire."""
    client = umadb.Client(url)
    at = (client.head() or 0) - items
    came = 0
    cpu, started = time.process_time(), time.perf_counter()
    while came < items:
        events, _ = client.read(start=at + 1, limit=page).collect_with_head()
        came += len(events)
        at = events[-1].position
    took = time.perf_counter() - started
    cpu = (time.process_time() - cpu) / took
    return {"value": came / took, "generator_cpu": cpu}


def poll(url: str, connections: int, seconds: float) -> dict[str, Any]:
    """Polls the head, because thousands of empty reads a second break the client's connection."""
    figure = load(url, connections, seconds, lambda client, _: client.head())
    del figure["counted"]
    return figure


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "push": push,
    "fill": fill,
    "pull": pull,
    "poll": poll,
}


def main() -> None:
    url, what, *numbers, seconds = sys.argv[1:]
    print(json.dumps(WORK[what](url, *map(int, numbers), float(seconds))), flush=True)
    os._exit(0)  # ends the threads of the client


if __name__ == "__main__":
    main()
