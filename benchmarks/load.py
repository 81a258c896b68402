"""The load generator: keep-alive connections, each with one request under way.

It uses sockets and a selector, because the generator shares two cores with the service. wrk costs
half as much, but drops its last requests, so the stored events could differ from the acknowledged
ones. `wrk.py` has its own rows to show the difference.
"""

from __future__ import annotations

import gc
import selectors
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

from .connection import ANSWER_SECONDS_MAX, Connection
from .errors import BenchmarkFailed

#: how long all connections are busy before the measurement starts
RAMP_SECONDS = 0.3


@dataclass(frozen=True)
class Load:
    """The result of a load."""

    answers_per_second: float
    p50_ms: float
    p99_ms: float
    counted: int  #: occurrences in all answers, also before and after the measurement
    generator_cpu: float  #: share of one core
    answers: int  #: number of all answers
    refused: int


def drive(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    count: Callable[[bytes], int] | bytes = b"{",
    again: bool = False,
    answers_min: int = 1,
    is_lenient: bool = False,
) -> Load:
    """Keeps one request open on each connection for so many seconds, then awaits the last answers.

    Sends each request once, or with `again` repeats them in order. Counts the occurrences of
    `count` in the answers. Measures until `answers_min` answers have arrived, for slow servers.
    Raises `BenchmarkFailed` for an error status. With `is_lenient` it skips refused requests.
    """
    latencies: list[float] = []
    counted = refused = answers = 0
    unsent = cycle(requests) if again else iter(requests)
    with (
        _connected(port, connections, is_lenient) as (selector, opened),
        _no_garbage_collection(),
    ):
        cpu, began = time.process_time(), time.perf_counter()
        opens = began + RAMP_SECONDS
        stopped = closes = opens + seconds
        for connection in opened:
            connection.send(next(unsent))
        busy = connections
        while busy:
            for key, _ in selector.select(ANSWER_SECONDS_MAX):
                connection = key.data
                answer = connection.receive()
                if answer is None:
                    continue
                now = time.perf_counter()
                answers += 1
                runs = now < closes or len(latencies) < answers_min
                if not answer.is_good:
                    refused += 1
                elif runs and now >= opens:
                    latencies.append(now - connection.sent_at)
                    stopped = max(closes, now)
                following = next(unsent, None) if runs else None
                if following is not None:
                    connection.send(following)
                else:
                    busy -= 1
                if answer.is_good:
                    body = answer.body
                    counted += count(body) if callable(count) else body.count(count)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
    if time.perf_counter() < closes or len(latencies) < answers_min:
        raise BenchmarkFailed(f"{len(requests)} requests were too few for {seconds} s")
    p50, p99 = percentiles(latencies)
    rate = len(latencies) / (stopped - opens)
    return Load(rate, p50 * 1_000, p99 * 1_000, counted, cpu, answers, refused)


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


@contextmanager
def _connected(
    port: int, number: int, is_lenient: bool
) -> Iterator[tuple[selectors.BaseSelector, list[Connection]]]:
    opened: list[Connection] = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(number):
                opened.append(Connection(port, is_lenient=is_lenient))
                selector.register(opened[-1].socket, selectors.EVENT_READ, opened[-1])
            yield selector, opened
        finally:
            for connection in opened:
                connection.close()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables garbage collection, because its pauses would count as the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
