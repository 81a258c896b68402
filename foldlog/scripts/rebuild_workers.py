"""Rebuilding many spaces at once: a worker process a core, the longest logs first.

Workers share nothing but the database, and may be killed at any time, since a rebuild goes on where
it stopped. So that is how they end early: with their parent, or when it calls them off.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from threading import Thread

from foldlog.domain.errors import FoldlogError, OperatorError, Unavailable
from foldlog.domain.limits import LIMITS, Limits
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.projections import projection_named
from foldlog.infrastructure.postgres.rebuild.batches import Halted
from foldlog.infrastructure.postgres.rebuild.rebuild import RebuildDiffers, Rebuilder, Rebuilt

from .console import quiet_logs

#: called with a space, its position, and its head
Report = Callable[[str, int, int], None]

REPORT_SECONDS = 0.2
#: A rebuild makes millions of objects that live for a while and no cycles of them.
COLLECT_EVERY = 50_000

SELECT_HEADS = """
SELECT space, head
  FROM spaces
 WHERE space = ANY(%(spaces)s)
 ORDER BY space
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one space: `rebuilt`, or why it was not."""

    space: str
    rebuilt: Rebuilt | None = None
    differs: str = ""  #: the first difference
    failed: str = ""


@dataclass(frozen=True)
class Task:
    """What is to be done with each space."""

    projection: str = "master"
    verify: bool = False
    fresh: bool = False
    limits: Limits = LIMITS


def heads(datastore: Datastore, spaces: Sequence[str]) -> dict[str, int]:
    """How long the logs of these spaces are, the longest first; 0 for one that is not there."""
    with datastore.rows() as cursor:
        found = dict(cursor.execute(SELECT_HEADS, {"spaces": list(spaces)}).fetchall())
    return dict(sorted(((s, found.get(s, 0)) for s in spaces), key=lambda item: -item[1]))


def rebuild_many(
    url: str, spaces: Sequence[str], task: Task, *, jobs: int, report: Report
) -> Iterator[Outcome]:
    """Rebuilds a projection of the spaces in the order given, so many at a time.

    Yields each as it ends. What is wrong with one space does not hold up the others. Raises if the
    database is gone.
    """
    jobs = min(jobs, len(spaces))
    if jobs > 1:
        yield from _in_processes(url, spaces, jobs, task, report)
    elif spaces:
        _collect_rarely()
        with Datastore(url) as datastore:
            for space in spaces:
                yield _rebuild(datastore, space, task, report)


def _rebuild(datastore: Datastore, space: str, task: Task, report: Report) -> Outcome:
    try:
        projection = projection_named(task.projection, task.limits)
        rebuilder = Rebuilder(datastore, projection, report=report)
        return Outcome(space, rebuilder.rebuild(space, verify=task.verify, fresh=task.fresh))
    except RebuildDiffers as exc:
        return Outcome(space, differs=str(exc))
    except Halted as exc:
        return Outcome(space, failed=f"{space}: an event cannot be processed: {exc}")
    except Unavailable:
        raise
    except FoldlogError as exc:
        return Outcome(space, failed=f"{exc} ({exc.code})")


def _in_processes(
    url: str, spaces: Sequence[str], jobs: int, task: Task, report: Report
) -> Iterator[Outcome]:
    context = get_context("spawn")  # a fork would share our connections and threads
    reports: SimpleQueue[tuple[str, int, int]] = context.SimpleQueue()
    lifeline, our_end = context.Pipe(duplex=False)

    def pass_on() -> None:
        while not reports.empty():
            report(*reports.get())

    workers = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(url, lifeline, reports)
    )
    try:
        waiting: set[Future[Outcome]] = {workers.submit(_work, space, task) for space in spaces}
        while waiting:
            done, waiting = wait(waiting, REPORT_SECONDS, FIRST_COMPLETED)
            pass_on()
            yield from (future.result() for future in done)
    except BrokenProcessPool as exc:
        raise OperatorError("a worker process died; start again, and it goes on") from exc
    finally:
        our_end.close()
        workers.shutdown(cancel_futures=True)


# -- in a worker


def _begin(url: str, lifeline: Connection, reports: SimpleQueue[tuple[str, int, int]]) -> None:
    global _datastore, _reports
    quiet_logs()
    _collect_rarely()
    _datastore, _reports = Datastore(url), reports
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _work(space: str, task: Task) -> Outcome:
    return _rebuild(_datastore, space, task, lambda *where: _reports.put(where))


_datastore: Datastore
_reports: SimpleQueue[tuple[str, int, int]]


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError):
        lifeline.recv()  # nothing is ever sent: it ends when the parent, or its end of it, does
    os._exit(1)


def _collect_rarely() -> None:
    gc.set_threshold(COLLECT_EVERY)
