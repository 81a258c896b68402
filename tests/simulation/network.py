"""The service called directly, and an unreliable network to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from foldlog.api.http.problems import document_of, status_of
from foldlog.api.http.replies import joined
from foldlog.api.shapes.answers import SyncAnswer
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.transport.server import Server
from foldlog.domain.changesets import Push, decode_changesets
from foldlog.domain.errors import FoldlogError, LogBehind, LogChanged, UnknownSpace
from foldlog.domain.limits import Limits
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.memory.store import MemoryStore
from tests.new_device import lines_of

if TYPE_CHECKING:
    from .device import Device
    from .world import World

_encode, _decode = msgspec.json.encode, msgspec.json.decode


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a sync."""

    device: str
    sent_at: datetime
    after: int
    mark: str | None = None
    changesets: msgspec.Raw = msgspec.Raw(b"[]")
    limit: int = 500


class DirectServer(Server):
    """One space of a service, with the parts and documents of the HTTP API, but faster."""

    def __init__(self, store: MemoryStore, space: str, limits: Limits):
        super().__init__()
        self._store = store
        self._space = space
        self._limits = limits

    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        with _problems_raised():
            answer = self._sync(_decode(_encode(body), type=_Body))
        return _decode(_encode(answer))

    def _sync(self, body: _Body) -> SyncAnswer:
        changesets = decode_changesets(body.changesets, body.device, self._limits)
        push = Push(body.device, body.sent_at, changesets, body.after, body.mark)
        query = RangeQuery(body.after, body.limit, body.mark, short_for_device=body.device)
        verdicts = []
        if changesets:
            verdicts = self._store.push(self._space, push).verdicts
        try:
            page = self._store.range_after(self._space, query)
        except UnknownSpace:
            self._store.push(self._space, push)
            page = self._store.range_after(self._space, query)
        return SyncAnswer(
            page.log,
            page.head,
            joined(page.events),
            page.through,
            page.mark,
            page.more,
            verdicts=verdicts,
        )

    def has_mark(self, after: int, mark: str) -> bool:
        try:
            self._store.range_after(self._space, RangeQuery(after, 1, mark))
        except (LogBehind, LogChanged, UnknownSpace):
            return False
        return True

    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        with _problems_raised():
            found = self._store.snapshot(self._space, cursor=cursor)
        try:
            yield from lines_of(found)
        except FoldlogError:
            return  # the response has begun, so it can only end early

    def close(self) -> None:
        pass


@contextmanager
def _problems_raised() -> Iterator[None]:
    try:
        yield
    except FoldlogError as exc:
        document = _decode(_encode(document_of(exc)))
        raise ServerProblem(status_of(exc).value, document, None) from exc


def problem(status: int, code: str) -> ServerProblem:
    return ServerProblem(status, {"code": code, "detail": code, "status": status}, None)


class Wire(Server):
    """The network between a device and the service. FATES decides the fate of each request."""

    def __init__(self, world: World, device: Device, service: Server):
        super().__init__()
        self._world = world
        self._device = device
        self._service = service

    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        self._reach()
        fate = self._world.draw(FATES)
        return fate(self, _encode(body))

    def has_mark(self, after: int, mark: str) -> bool:
        self._reach()
        if self._world.may(0.05):
            raise Unreachable("lost")
        return self._service.has_mark(after, mark)

    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        self._reach()
        for line in self._service.snapshot(cursor):
            if self._world.may(0.05):
                raise Unreachable("cut")
            if self._world.may(0.02):
                self._device.die()
            yield line
            if self._world.may(0.10):
                self._world.sync_another(self._device)

    def close(self) -> None:
        self._service.close()

    def _reach(self) -> None:
        self.traffic.requests += 1
        if not self._device.is_online:
            raise Unreachable("offline")

    def _deliver(self, body: bytes) -> dict[str, Any]:
        return self._service.sync(_decode(body))

    def _receive(self, answer: dict[str, Any]) -> dict[str, Any]:
        self._device.acknowledged |= {
            verdict["id"] for verdict in answer["verdicts"] if verdict["verdict"] == "stored"
        }
        return answer

    # The fates of a request.

    def _well(self, body: bytes) -> dict[str, Any]:
        return self._receive(self._deliver(body))

    def _lost(self, body: bytes) -> dict[str, Any]:
        raise Unreachable("lost")

    def _answer_lost(self, body: bytes) -> dict[str, Any]:
        self._deliver(body)
        raise Unreachable("the answer was lost")

    def _twice(self, body: bytes) -> dict[str, Any]:
        answer = self._deliver(body)
        try:
            again = self._deliver(body)
        except ServerProblem:
            again = answer
        return self._receive(self._world.rng.choice([answer, again]))

    def _again_later(self, body: bytes) -> dict[str, Any]:
        self._world.late.append(lambda: self._deliver(body))
        return self._well(body)

    def _late(self, body: bytes) -> dict[str, Any]:
        self._world.late.append(lambda: self._deliver(body))
        raise Unreachable("timed out")

    def _overtaken(self, body: bytes) -> dict[str, Any]:
        answer = self._deliver(body)
        self._world.sync_another(self._device)
        return self._receive(answer)

    def _killed_before(self, body: bytes) -> dict[str, Any]:
        self._device.die()

    def _killed_after(self, body: bytes) -> dict[str, Any]:
        self._deliver(body)
        self._device.die()

    def _killed_soon(self, body: bytes) -> dict[str, Any]:
        self._device.fuse = self._world.rng.randint(1, 12)
        return self._well(body)

    def _busy(self, body: bytes) -> dict[str, Any]:
        raise problem(503, "storage-unavailable")

    def _outcome_unknown(self, body: bytes) -> dict[str, Any]:
        self._deliver(body)
        raise problem(503, "outcome-unknown")

    def _signed_out(self, body: bytes) -> dict[str, Any]:
        raise problem(self._world.rng.choice([401, 403]), "unauthorized")


#: the fates of a request, with their frequencies
FATES: dict[Callable[[Wire, bytes], dict[str, Any]], int] = {
    Wire._well: 70,
    Wire._lost: 4,
    Wire._answer_lost: 8,
    Wire._twice: 4,
    Wire._again_later: 4,
    Wire._late: 4,
    Wire._overtaken: 4,
    Wire._killed_before: 1,
    Wire._killed_after: 3,
    Wire._killed_soon: 6,
    Wire._busy: 1,
    Wire._outcome_unknown: 2,
    Wire._signed_out: 1,
}
