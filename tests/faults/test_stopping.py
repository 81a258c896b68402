"""SIGTERM under load, as clients see it."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.acceptance.live import Connection, Stream
from tests.helpers import until

from .checker import problems
from .faults import World, bearer
from .history import History
from .run import SPACES, Load

#: A request that is older than this at the stop has reached the service.
BEGUN_SECONDS = 0.25
#: how long the stop waits for the lock of one space
HELD_SECONDS = 2.0
STOP_SECONDS_MAX = 30.0
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest.mark.seconds(20)
def test_a_stop_answers_open_requests_and_ends_streams_cleanly(data_folder):
    """
    The service is stopped during pushes, while those of one space wait for a lock. It answers all
    open requests, ends streams cleanly, and exits with 0 within its deadline. After a restart it
    has every acknowledged changeset.
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
            with world.session() as other:
                until(lambda: other.execute(WAITING).fetchone() != (0,))
            release = threading.Timer(HELD_SECONDS, conn.rollback)
            release.start()
            stopped_at = time.monotonic()
            assert world.service.stop() == 0
            assert time.monotonic() - stopped_at < STOP_SECONDS_MAX
            release.join()
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
