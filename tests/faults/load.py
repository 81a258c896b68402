"""Devices and readers that follow the protocol: they repeat a request without an answer."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from tests.helpers import changeset, put

from .faults import Service
from .history import Attempt, History, Push, Read

SENT_AT = "2026-11-23T09:00:00.000Z"
#: longer than the service may take
TIMEOUT_SECONDS = 20.0
RECORDS = 40
#: changesets of a push: mostly one, sometimes enough for COPY
SIZES = (1, 1, 1, 1, 2, 3, 8, 70)


def new_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


class Client(threading.Thread):
    """A client that repeats one kind of request until it is stopped."""

    #: mean seconds between the starts of two requests
    interval: float

    def __init__(self, url: str, space: str, token: str, seed: str, history: History):
        super().__init__(daemon=True)
        self.rng = random.Random(seed)
        self.space = space
        self.stopping = threading.Event()
        self._history = history
        self._http = httpx.Client(
            base_url=f"{url}/v1/spaces/{space}/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_SECONDS,
        )

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            self.once()
            # A late client skips the missed requests, so the load after an outage is as before.
            now = time.monotonic()
            due = max(now, due + self.interval * self.rng.uniform(0.5, 1.5))
            self.stopping.wait(due - now)
        self._http.close()

    def once(self) -> None:
        raise NotImplementedError

    def ask(
        self,
        method: str,
        path: str,
        make: Callable[..., Attempt],
        read: Callable[[dict[str, Any]], dict[str, Any]],
        **asked: Any,
    ) -> httpx.Response | None:
        """Sends one request and records it. Returns `None` if the answer is missing."""
        began = time.monotonic()
        try:
            answer = self._http.request(method, path, **asked)
        except httpx.HTTPError:
            ended = time.monotonic()
            made = make(space=self.space, began=began, ended=ended, status=0)
            self._history.attempts.append(made)
            return None
        ended, members = time.monotonic(), {}
        if answer.status_code == 200:
            members = read(answer.json())
        else:
            members["code"] = answer.json().get("code", "")
            members["retry_after"] = answer.headers.get("retry-after")
        self._history.attempts.append(
            make(space=self.space, began=began, ended=ended, status=answer.status_code, **members)
        )
        return answer


class Device(Client):
    interval = 0.02

    def __init__(self, service: Service, space: str, seed: str, history: History):
        self.device = new_uuid(random.Random(seed))
        token = service.grant(space, "device", self.device)
        super().__init__(service.url, space, token, seed, history)
        self._counter = 0

    def once(self) -> None:
        """Repeats one push until its answer is final."""
        size = self.rng.choice(SIZES)
        changesets = [
            changeset(
                put(f"r{self.rng.randrange(RECORDS)}", n=self._counter + n),
                id=new_uuid(self.rng),
                counter=self._counter + n + 1,
            )
            for n in range(size)
        ]
        self._counter += size
        body = {"device": self.device, "sent_at": SENT_AT, "changesets": changesets}
        ids = tuple(changeset["id"] for changeset in changesets)

        def make(**members: Any) -> Push:
            return Push(device=self.device, ids=ids, **members)

        def read(body: dict[str, Any]) -> dict[str, Any]:
            return {"verdicts": tuple((each["id"], each["seq"]) for each in body["verdicts"])}

        while True:
            answer = self.ask("POST", "changesets", make, read, json=body)
            if answer is not None and answer.status_code < 500:
                return
            time.sleep(0.05 if answer is None else 0.2)


class Poller(Client):
    """A client that follows the log."""

    interval = 0.05
    _after, _mark = 0, ""

    def once(self) -> None:
        after = self._after

        def make(**members: Any) -> Read:
            return Read(reader=self.name, after=after, **members)

        def read(body: dict[str, Any]) -> dict[str, Any]:
            events = tuple((event["seq"], event["id"]) for event in body["events"])
            return {"head": body["head"], "through": body["through"], "events": events}

        query = {"after": after, "mark": self._mark, "limit": 500}
        answer = self.ask("GET", "events", make, read, params=query)
        if answer is not None and answer.status_code == 200:
            page = answer.json()
            self._after, self._mark = page["through"], page["mark"]


class TableReader(Client):
    """A client that reads the whole master table."""

    interval = 0.2

    def once(self) -> None:
        def make(**members: Any) -> Read:
            return Read(reader=self.name, **members)

        def read(body: dict[str, Any]) -> dict[str, Any]:
            records = tuple((record["id"], record["seq"]) for record in body["records"])
            return {"head": body["head"], "through": body["projected"], "records": records}

        self.ask("GET", "records", make, read, params={"limit": 1_000})
