"""Following the service's live channel: one stream after another, as long as there are any.

A thread of its own reads a stream and is a page ahead; it touches nothing of the replica. Pages
are taken by the thread that syncs, which calls `attend`. So there is one thread that applies what
arrives, whichever way it came, and a stream that hangs holds up nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Condition, Event, Thread

from .errors import ServerProblem, Unreachable
from .file_lock import FileLockTaken, file_lock
from .pace import HELD_SECONDS, POLL_SECONDS_MAX, Pace
from .stream import SILENCE_SECONDS, Page, Stream
from .sync import PageResult

log = logging.getLogger("foldlog")

#: before a page is tried again while somebody else syncs the file
TURN_SECONDS = 0.1
#: for a reader to end after its stream was closed. One that still connects is not waited for.
CLOSE_SECONDS = 0.5
#: problems that a sync knows how to heal
HEALED_BY_SYNC = ("log-behind", "log-changed", "unknown-space")
#: there is no live channel: an older service, or something on the way that allows none
STATUSES_OF_NONE = (404, 405, 406, 410, 501)


class Live:
    """`connect` makes a stream from the cursor, and `take` applies a page of it.

    Both, like all methods but `is_live`, are called by the thread that syncs. `woken` is set when
    there is something to attend to.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], Stream],
        take: Callable[[Page], PageResult],
        woken: Event,
        now: Callable[[], float] = time.monotonic,
    ):
        self._path = path
        self._connect = connect
        self._take = take
        self._woken = woken
        self._now = now
        self._pace = Pace()
        self._reader: _Reader | None = None
        self._next_at = 0.0
        #: syncing goes well, so the cursor is where a stream can go on; `None`: it does not
        self.may_connect_from: float | None = None
        #: the last stream did its work, and there is no reason why the next one should not
        self.goes_on = False

    @property
    def is_live(self) -> bool:
        """A stream is open, and has shown lately that it lives.

        Until what follows from its end was attended to.
        """
        reader = self._reader
        return reader is not None and reader.is_live

    @property
    def next_at(self) -> float | None:
        """When `attend` has something to do; `None` if it is woken before."""
        reader = self._reader
        if reader is not None:
            return self._next_at if reader.has_page or reader.is_over else None
        at = self.may_connect_from
        return None if at is None else max(at, self._next_at)

    def attend(self) -> bool:
        """Takes a page, or sees to it that there is a stream.

        Returns whether something is odd about it: a sync shall decide then what to do.
        """
        next_at = self.next_at
        if next_at is None or self._now() < next_at:
            return False
        reader = self._reader
        if reader is None:
            return self._begin()
        return self._take_page(reader) if reader.has_page else self._end(reader)

    def close(self) -> None:
        """Ends the stream promptly, also one that says nothing."""
        if self._reader is not None:
            self._leave(self._reader)
        self._next_at = 0.0
        self.may_connect_from = None

    def _begin(self) -> bool:
        try:
            stream = self._connect()
        except (ServerProblem, Unreachable) as exc:
            return self._wait_after(exc)
        self._reader = _Reader(stream, self._path, self._woken, self._now)
        return False

    def _take_page(self, reader: _Reader) -> bool:
        try:
            fit = self._take(reader.page)
        except FileLockTaken:
            self._next_at = self._now() + TURN_SECONDS
            return False
        except Exception:
            # A full disk, a locked file: syncing knows how to wait for better times.
            log.exception("a page of the live channel could not be applied")
            fit = PageResult.ODD
        if fit in (PageResult.APPLIED, PageResult.KNOWN):
            reader.is_useful |= fit is PageResult.APPLIED
            reader.release()
            return False
        self._leave(reader)
        if fit is PageResult.OVERLAPS:
            # A sync was quicker. Where histories cannot be compared, the service must do it.
            return self._go_on(reader)
        self._next_at = self._now() + self._pace.after_failure()
        self.goes_on = False
        return True

    def _leave(self, reader: _Reader) -> None:
        self._reader = None
        reader.close()
        reader.thread.join(CLOSE_SECONDS)

    def _end(self, reader: _Reader) -> bool:
        """What next, after a stream has ended? Returns whether a sync shall decide."""
        self._reader = None
        if reader.is_useful or reader.lived_seconds >= SILENCE_SECONDS:
            self._pace.forgive()
            if not isinstance(reader.why, ServerProblem):
                # Many streams may have ended at this moment; that of a service that restarts, all.
                return self._go_on(reader)
        return self._wait_after(reader.why)

    def _go_on(self, reader: _Reader) -> bool:
        self._next_at = self._now() + self._pace.spread(reader.stream.retry_seconds)
        self.goes_on = True
        return False

    def _wait_after(self, why: Exception | None) -> bool:
        wait = self._pace.after_failure(why)
        heals = False
        if isinstance(why, FileLockTaken):
            self._pace.forgive()  # another process follows, and applies what comes
            wait = self._pace.jittered(POLL_SECONDS_MAX)
        elif isinstance(why, ServerProblem):
            heals = why.problem in HEALED_BY_SYNC
            if why.status in STATUSES_OF_NONE and not heals:
                wait = max(wait, self._pace.jittered(HELD_SECONDS))
        self._next_at = self._now() + wait
        self.goes_on = False
        return heals


class _Reader:
    """Reads one stream in a thread of its own, and hands over one page after another."""

    def __init__(self, stream: Stream, path: Path, woken: Event, now: Callable[[], float]):
        self.stream = stream
        self.is_live = False
        self.is_over = False
        self.is_useful = False  #: it brought something
        self.why: Exception | None = None  #: why it ended; `None`: in good order
        self._path = path
        self._woken = woken
        self._now = now
        self._live_since: float | None = None
        self._page: Page | None = None
        self._is_closed = False
        self._handover = Condition()
        self.thread = Thread(target=self._run, name="foldlog-live", daemon=True)
        self.thread.start()

    @property
    def lived_seconds(self) -> float:
        return 0.0 if self._live_since is None else self._now() - self._live_since

    @property
    def has_page(self) -> bool:
        return self._page is not None

    @property
    def page(self) -> Page:
        assert self._page is not None
        return self._page

    def release(self) -> None:
        """The page is done with: on to the next one."""
        with self._handover:
            self._page = None
            self._handover.notify()

    def close(self) -> None:
        self._is_closed = True
        self.release()
        self.stream.close()

    def _run(self) -> None:
        try:
            # One process follows for all that have the file open.
            with file_lock(self._path, "live"), closing(self.stream.pages()) as pages:
                for page in pages:
                    if self._is_closed:
                        return
                    self._hear(page)
        except (FileLockTaken, ServerProblem, Unreachable) as exc:
            self.why = exc
        except Exception as exc:
            if not self._is_closed:
                log.exception("following the live channel failed")
            self.why = exc
        finally:
            self.is_over = True
            self._woken.set()

    def _hear(self, page: Page | None) -> None:
        if self._live_since is None:
            self._live_since = self._now()
            self.is_live = True
            self._woken.set()
        if page is not None:
            with self._handover:
                self._page = page
                self._woken.set()
                self._handover.wait_for(lambda: self._page is None or self._is_closed)
