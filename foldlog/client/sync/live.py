"""Follows the live channel of the service, which sends new events as soon as they are stored.

When a stream ends, the next one is opened. A reader thread reads each stream, and pauses after each
page until the page was applied. The thread that syncs calls `LiveChannel.step`, which applies the
pages to the local store. Therefore a stream that hangs blocks only its reader thread, and only one
thread writes to the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Condition, Event, Thread

from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.transport.stream import SILENCE_SECONDS, Page, Stream

from .file_lock import FileLockTaken, file_lock
from .results import PageResult
from .schedule import LONG_RETRY_SECONDS, POLL_SECONDS_MAX, Schedule

log = logging.getLogger("foldlog")

#: wait before a page is tried again while another process syncs the file
FILE_LOCK_RETRY_SECONDS = 0.1
#: wait for a reader thread after its stream was closed; a reader that still connects is left alone
CLOSE_SECONDS = 0.5
#: problem codes that a sync can heal
HEALED_BY_SYNC = ("log-behind", "log-changed", "unknown-space")
#: statuses of a service, or of a proxy, without a live channel
STATUSES_WITHOUT_CHANNEL = (404, 405, 406, 410, 501)


class LiveChannel:
    """Follows the live channel of a service for the replica at `path`.

    `connect` returns a stream that begins at the cursor, and `apply_page` applies one page of
    the stream. The thread that syncs calls all methods; any thread may read `is_live`. The
    channel sets the event `woken` when `step` should be called. `now` returns the time of a
    monotonic clock in seconds.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], Stream],
        apply_page: Callable[[Page], PageResult],
        woken: Event,
        now: Callable[[], float] = time.monotonic,
    ):
        self._path = path
        self._connect = connect
        self._apply_page = apply_page
        self._woken = woken
        self._now = now
        self._schedule = Schedule()
        self._reader: _Reader | None = None
        self._next_at = 0.0
        #: earliest time of a new stream; `None` while syncing fails
        self.may_connect_from: float | None = None
        #: whether the last stream ended normally, so that a new one opens soon
        self.will_reconnect = False

    @property
    def is_live(self) -> bool:
        """Whether a stream is open and has sent at least one page or heartbeat.

        After a stream has ended, the value is still `True` until `step` has handled the end.
        """
        reader = self._reader
        return reader is not None and reader.is_live

    @property
    def next_at(self) -> float | None:
        """The time at which the syncing thread should call `step`, by the clock `now`. `None` means
        that the thread should wait until the event `woken` is set.
        """
        reader = self._reader
        if reader is not None:
            return self._next_at if reader.has_page or reader.is_over else None
        at = self.may_connect_from
        return None if at is None else max(at, self._next_at)

    def forget_failures(self) -> None:
        """Lets the next stream open without the wait after earlier failures."""
        self._schedule.reset_failures()
        self._next_at = 0.0

    def step(self) -> bool:
        """Does the next step of the channel if its time has come: applies a page, handles
        the end of a stream, or opens a new stream.

        Returns `True` if a sync is needed, for example because applying a page failed.
        """
        next_at = self.next_at
        if next_at is None or self._now() < next_at:
            return False
        reader = self._reader
        if reader is None:
            return self._open()
        return self._apply(reader) if reader.has_page else self._handle_end(reader)

    def close(self) -> None:
        """Closes the open stream at once, even if its reader thread is waiting for data."""
        if self._reader is not None:
            self._close_reader(self._reader)
        self._next_at = 0.0
        self.may_connect_from = None

    def _open(self) -> bool:
        try:
            stream = self._connect()
        except (ServerProblem, Unreachable) as exc:
            return self._retry_later(exc)
        self._reader = _Reader(stream, self._path, self._woken, self._now)
        return False

    def _apply(self, reader: _Reader) -> bool:
        try:
            result = self._apply_page(reader.page)
        except FileLockTaken:
            self._next_at = self._now() + FILE_LOCK_RETRY_SECONDS
            return False
        except Exception:
            # For example a full disk. A sync waits and tries again.
            log.exception("a page of the live channel could not be applied")
            result = PageResult.NEEDS_SYNC
        if result in (PageResult.APPLIED, PageResult.DUPLICATE):
            reader.has_delivered |= result is PageResult.APPLIED
            reader.release()
            return False
        self._close_reader(reader)
        if result is PageResult.OVERLAPS:
            # A sync has moved the cursor. A new stream makes the service check the history.
            return self._reconnect_soon(reader)
        self._next_at = self._now() + self._schedule.after_failure()
        self.will_reconnect = False
        return True

    def _close_reader(self, reader: _Reader) -> None:
        self._reader = None
        reader.close()
        reader.thread.join(CLOSE_SECONDS)

    def _handle_end(self, reader: _Reader) -> bool:
        self._reader = None
        if reader.has_delivered or reader.lived_seconds >= SILENCE_SECONDS:
            self._schedule.reset_failures()
            if not isinstance(reader.error, ServerProblem):
                return self._reconnect_soon(reader)
        return self._retry_later(reader.error)

    def _reconnect_soon(self, reader: _Reader) -> bool:
        # Spread, because a restart of the service ends the streams of all devices together.
        self._next_at = self._now() + self._schedule.spread(reader.stream.retry_seconds)
        self.will_reconnect = True
        return False

    def _retry_later(self, error: Exception | None) -> bool:
        """Computes and saves the time at which the next stream is opened. `error` is the error that
        ended the last stream. Returns `True` if a sync can repair the cause of this error.
        """
        wait = self._schedule.after_failure(error)
        needs_sync = False
        if isinstance(error, FileLockTaken):
            self._schedule.reset_failures()  # another process follows the channel for this file
            wait = self._schedule.jittered(POLL_SECONDS_MAX)
        elif isinstance(error, ServerProblem):
            needs_sync = error.problem in HEALED_BY_SYNC
            if error.status in STATUSES_WITHOUT_CHANNEL and not needs_sync:
                wait = max(wait, self._schedule.jittered(LONG_RETRY_SECONDS))
        self._next_at = self._now() + wait
        self.will_reconnect = False
        return needs_sync


class _Reader:
    """Reads one stream in its own thread, and offers one page at a time to `LiveChannel.step`."""

    def __init__(self, stream: Stream, path: Path, woken: Event, now: Callable[[], float]):
        self.stream = stream
        self.is_live = False
        self.is_over = False
        self.has_delivered = False  #: whether a page of this stream was applied
        self.error: Exception | None = None  #: the error that ended the stream
        self._path = path
        self._woken = woken
        self._now = now
        self._live_since: float | None = None
        self._page: Page | None = None
        self._is_closed = False
        self._page_taken = Condition()
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
        """Drops the current page, and lets the reader thread continue with the next one."""
        with self._page_taken:
            self._page = None
            self._page_taken.notify()

    def close(self) -> None:
        self._is_closed = True
        self.release()
        self.stream.close()

    def _run(self) -> None:
        try:
            # The lock makes one process follow the channel for all that have the file open.
            with file_lock(self._path, "live"), closing(self.stream.pages()) as pages:
                for page in pages:
                    if self._is_closed:
                        return
                    self._hand_over(page)
        except (FileLockTaken, ServerProblem, Unreachable) as exc:
            self.error = exc
        except Exception as exc:
            if not self._is_closed:
                log.exception("following the live channel failed")
            self.error = exc
        finally:
            self.is_over = True
            self._woken.set()

    def _hand_over(self, page: Page | None) -> None:
        """Offers a page to `LiveChannel.step`, and waits until `release` is called.

        `page` is `None` for a heartbeat, which only shows that the stream is open.
        """
        if self._live_since is None:
            self._live_since = self._now()
            self.is_live = True
            self._woken.set()
        if page is not None:
            with self._page_taken:
                self._page = page
                self._woken.set()
                self._page_taken.wait_for(lambda: self._page is None or self._is_closed)
