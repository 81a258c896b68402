"""The load generator: keep-alive connections, each with one request under way.

Sockets and a selector, because on two cores a generator takes from what it measures. wrk takes
half as much, but it cuts off its last requests: whether all that was acknowledged is stored, and
nothing else, could then not be told. `wrk.py` has rows of its own to show what that makes.
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
    answers: int  #: all of them
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
    """Keeps a request under way on every connection for so long; then waits for the last answers.

    Each request is sent once, or with `again` in turns. Occurrences of `count` in the answers are
    counted. The clock runs on until there are `answers_min`, for servers that need many seconds
    for one. Raises `BenchmarkFailed` for any answer that is not a good one; a server that is
    known to refuse some may be treated leniently: what it refuses is not counted.
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
    """A pause of ours would count as one of the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
