"""SIGTERM under load, seen from outside."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.acceptance.live import Connection, Stream

from .checker import problems
from .faults import World, bearer
from .history import History
from .run import SPACES, Load

#: What reached the service this long before it was asked to stop has begun.
BEGUN_SECONDS = 0.25
#: how long one push is kept waiting, from before the stop
HELD_SECONDS = 2.0
STOP_SECONDS_MAX = 30.0


@pytest.mark.slow
def test_a_stop_answers_what_has_begun_and_ends_streams_in_good_order(data_folder):
    """
    The service is asked to stop in the midst of pushes, one space's waiting for a lock. Whatever
    had begun is answered, streams are ended and not broken off, it exits with 0 within its
    deadline; started again, it has every changeset that was acknowledged.
    """
    history = History()
    world = World(data_folder, random.Random(1))
    load = Load(world.service, 1, history)
    try:
        load.start()
        stream = Stream(
            world.service.port,
            f"/v1/spaces/{SPACES[0]}/events/stream?after=0",
            headers=bearer(load.readers[SPACES[0]]),
        )
        read: list = []
        reading = threading.Thread(target=lambda: read.extend(stream.all()), daemon=True)
        reading.start()
        load.wait_until_served()
        with world.session(autocommit=False) as conn:
            conn.execute("SELECT FROM spaces WHERE space = %s FOR UPDATE", (SPACES[1],))
            time.sleep(0.5)
            threading.Timer(HELD_SECONDS, conn.rollback).start()
            stopped_at = time.monotonic()
            assert world.service.stop() == 0
            assert time.monotonic() - stopped_at < STOP_SECONDS_MAX
            time.sleep(HELD_SECONDS)
        reading.join(10)
        assert stream.head.is_whole, "the stream was broken off"
        assert "problem" not in {message.kind for message in read}
        unanswered = [
            attempt
            for attempt in history.attempts
            if attempt.status == 0 and attempt.began < stopped_at - BEGUN_SECONDS
        ]
        assert unanswered == []
        held = [
            push
            for push in history.pushes
            if push.space == SPACES[1] and push.began < stopped_at < push.ended and push.status
        ]
        assert held and {push.status for push in held} == {200}, "nothing waited for the lock"
        world.service.start()
        load.stop()
        found = problems(history, {space: world.service.log(space) for space in SPACES})
        assert "\n".join(found) == ""
    finally:
        Connection.close_all()
        assert world.close() == 0
