"""The load generator: keep-alive connections, each with one request under way.

Sockets and a selector, because on two cores a generator takes from what it measures. wrk needs
about 24 µs a request where this needs 30, most of it in the kernel, but it cuts off its last
requests: whether all that was acknowledged is stored, and nothing else, could then not be told.
"""

from __future__ import annotations

import gc
import selectors
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

from .connection import ANSWER_SECONDS_MAX, Connection
from .errors import BenchmarkFailed

#: when the clock starts, every connection has been busy for so long
RAMP_SECONDS = 0.3


@dataclass(frozen=True)
class Load:
    """What came of driving a server."""

    answers_per_second: float
    p50_ms: float
    p99_ms: float
    counted: int  #: in all answers, also those before the clock started and after it stopped
    generator_cpu: float  #: our share of one core


def drive(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float, count: bytes = b"{"
) -> Load:
    """Keeps a request under way on every connection for so long; then waits for the last answers.

    A single request is sent again and again, many are sent once each. Occurrences of `count` in
    the answers are counted. Raises `BenchmarkFailed` for any answer but 200.
    """
    latencies: list[float] = []
    counted = 0
    unsent = cycle(requests) if len(requests) == 1 else iter(requests)
    with _connected(port, connections) as (selector, opened), _no_garbage_collection():
        cpu, began = time.process_time(), time.perf_counter()
        opens = began + RAMP_SECONDS
        closes = opens + seconds
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
                if opens <= now < closes:
                    latencies.append(now - connection.sent_at)
                following = next(unsent, None) if now < closes else None
                if following is not None:
                    connection.send(following)
                else:
                    busy -= 1
                counted += answer.body.count(count)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
    if time.perf_counter() < closes:
        raise BenchmarkFailed(f"{len(requests)} requests were too few for {seconds} s")
    if not latencies:
        raise BenchmarkFailed(f"no answer in {seconds} s")
    p50, p99 = _percentiles(latencies)
    return Load(len(latencies) / seconds, p50 * 1_000, p99 * 1_000, counted, cpu)


def _percentiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


@contextmanager
def _connected(port: int, number: int) -> Iterator[tuple[selectors.BaseSelector, list[Connection]]]:
    opened: list[Connection] = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(number):
                opened.append(Connection(port))
                selector.register(opened[-1].socket, selectors.EVENT_READ, opened[-1])
            yield selector, opened
        finally:
            for connection in opened:
                connection.close()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A pause of ours would count as one of the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
