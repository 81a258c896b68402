"""A simulated world: devices around one service, with failures that all heal in the end.

One `random.Random(seed)` decides everything, also the time, so a failing seed fails again. Three
tables list the possible steps with their frequencies: STEPS here, FATES of a request in network.py,
and EDITS in device.py.
"""

from __future__ import annotations

import copy
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.client.errors import ServerProblem
from foldlog.client.store import database, marks
from foldlog.client.sync import batch, synchroniser
from foldlog.client.transport.server import HttpServer, Server
from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key
from foldlog.infrastructure.memory.store import MemoryStore
from tests.asgi_client import asgi_transport

from .checks import check_all
from .device import SPACE, Device
from .network import DirectServer, Wire

Choice = TypeVar("Choice")
BEGINNING_MS = 1_795_424_400_000
HOUR_MS = 3_600_000
#: rounds of syncs after which all devices must be equal
HEALING_ROUNDS_MAX = 12


class Backup(NamedTuple):
    device: Device
    path: Path
    acknowledged: set[str]
    made: set[str]


class World:
    def __init__(self, seed: int, folder: Path, *, over_http: bool = False):
        self.seed = seed
        self.rng = random.Random(seed)
        self.folder = folder
        self.now = BEGINNING_MS
        self.is_chaotic = True
        self.late: list[Callable[[], Any]] = []  #: requests that are delivered later
        self.limits = Limits(
            changesets_per_push_max=self.rng.choice([1, 2, 3, 1_000]),
            event_bytes_max=2_000,
            field_name_length_max=20,
            nesting_max=4,
            page_bytes_max=self.rng.choice([300, 1_500, 8 * 2**20]),
            page_snapshot_records=self.rng.choice([1, 2, 3, 1_000]),
        )
        self.ids = [f"r{n}" for n in range(self.rng.choice([2, 4, 10]))]
        self.names = ["a", "b", "c"][: self.rng.choice([1, 2, 3])]
        self.store = MemoryStore(now_ms=lambda: self.now, limits=self.limits)
        self.service_copy = copy_of(self.store)  #: the backup of the service, empty at first
        self.was_restored = False
        self._app = self._make_app() if over_http else None
        self._depth = 0
        self.devices: list[Device] = []
        self.backups: list[Backup] = []
        #: all acknowledged ids, also those that a device has lost by a restore
        self.acknowledged: set[str] = set()
        self.erased: dict[Key, int] = {}  #: seq of the last erasure of each record

    def _make_app(self) -> Any:
        return create_app(
            store=self.store, master=self.store, ready=dict, limits=self.limits, access=OpenAccess()
        )

    def service(self) -> Server:
        if self._app is None:
            return DirectServer(self.store, SPACE, self.limits)
        transport = asgi_transport(self._app)
        return HttpServer("http://localhost", SPACE, transport=transport)

    def wire(self, device: Device) -> Server:
        return Wire(self, device, self.service())

    def run(self) -> None:
        with self._small_numbers():
            try:
                for _ in range(self.rng.choice([2, 2, 3, 3, 4, 5, 8, 12, 20])):
                    self.join()
                for _ in range(self.rng.choice([30, 60, 120])):
                    self.step()
                self.heal()
                check_all(self)
            finally:
                for device in self.devices:
                    device.replica._store.database.close()

    @contextmanager
    def _small_numbers(self) -> Iterator[None]:
        """Lowers limits, so that a few events suffice to reach them."""
        choice, patched = self.rng.choice, mock.patch.object
        with (
            patched(synchroniser, "SNAPSHOT_EVENTS_MIN", choice([1, 5, 15, 2_000])),
            patched(batch, "PUSH_MAX", choice([2, 5, 200])),
            patched(marks, "MARKS_DENSE", choice([2, 10])),
            patched(database, "SYNCHRONOUS", "OFF"),
        ):
            yield

    # Chance.

    def draw(self, table: Mapping[Choice, int]) -> Choice:
        if table is not STEPS and not self.is_chaotic:
            return next(iter(table))  # the first of each table is success
        return self.rng.choices(list(table), list(table.values()))[0]

    def may(self, probability: float) -> bool:
        return self.is_chaotic and self.rng.random() < probability

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def any_device(self) -> Device:
        return self.rng.choice(self.devices)

    # Steps.

    def step(self) -> None:
        self.draw(STEPS)(self)
        self.now += self.rng.choice([0, 1, 1_000, 60_000])

    def edit(self) -> None:
        self.any_device().edit()

    def sync(self) -> None:
        device = self.any_device()
        device.sync()
        device.check_callbacks()

    def listen(self) -> None:
        """Delivers a page of the live channel, at once or late."""
        device = self.any_device()
        page = device.next_page()
        if page is None:
            return
        if self.may(0.4):
            self.late.append(lambda: device.take(page))
        if self.may(0.8):
            device.take(page)
            device.check_callbacks()

    def sync_another(self, device: Device) -> None:
        """Edits and syncs another device during a request of this one."""
        others = [other for other in self.devices if other is not device]
        if self._depth == 0 and others:
            self._depth += 1
            other = self.rng.choice(others)
            other.edit()
            other.sync()
            self._depth -= 1

    def go_offline(self) -> None:
        self.any_device().is_online = False

    def come_online(self) -> None:
        device = self.any_device()
        device.is_online = True
        device.sync()

    def wait(self) -> None:
        self.now += self.rng.randint(0, 5 * HOUR_MS)

    def jump_clock(self) -> None:
        self.any_device().jump()

    def kill(self) -> None:
        self.any_device().reopen()

    def mend(self) -> None:
        self.any_device().mend()

    def keep_temporary(self) -> None:
        self.any_device().keep_temporary()

    def deliver_late(self) -> None:
        if self.late:
            with suppress(ServerProblem):
                self.late.pop(self.rng.randrange(len(self.late)))()

    def back_up(self) -> None:
        device = self.any_device()
        path = self.folder / f"backup-{len(self.backups)}"
        device.copy_to(path)
        self.backups.append(Backup(device, path, set(device.acknowledged), set(device.made)))

    def restore(self) -> None:
        if self.backups:
            backup = self.rng.choice(self.backups)
            self.acknowledged |= backup.device.acknowledged
            backup.device.acknowledged = set(backup.acknowledged)
            backup.device.made = set(backup.made)
            backup.device.put_back(backup.path)

    def clone(self) -> None:
        original = self.any_device()
        path = self._new_path()
        original.copy_to(path)
        clone = Device(self, path.name, path)
        clone.acknowledged = set(original.acknowledged)
        self.devices.append(clone)

    def join(self) -> None:
        path = self._new_path()
        self.devices.append(Device(self, path.name, path))

    def _new_path(self) -> Path:
        return self.folder / f"device-{len(self.devices)}"

    def copy_service(self) -> None:
        if not self.was_restored:
            self.service_copy = copy_of(self.store)

    def erase(self) -> None:
        """Erases a record of the log."""
        if self.store._spaces:
            keys = {
                op.key
                for entry in self.store._space(SPACE).entries
                for op in decode_event(entry.state).ops
            }
            if keys:
                key = self.rng.choice(sorted(keys))
                [erased] = self.store.erase(SPACE, [key], reason="asked to")
                self.erased[key] = max(erased.seq, self.erased.get(key, 0))

    def was_erased(self, key: Key, seq: int) -> bool:
        """Whether the record was erased after event `seq`, also by an erasure that was lost."""
        return seq < self.erased.get(key, 0)

    def restore_service(self) -> None:
        if not self.was_restored:
            self.was_restored = True
            self.store._spaces.clear()
            self.store._spaces.update(self.service_copy)

    # The end.

    def heal(self) -> None:
        """Stops all failures, and syncs until all devices are at rest."""
        self.is_chaotic = False
        while self.late:
            self.deliver_late()
        for _ in range(2):
            self.join()
        for _ in range(HEALING_ROUNDS_MAX):
            before = self.state()
            for device in self.devices:
                device.is_online = True
                device.sync()
                device.check_callbacks()
            if self.state() == before:
                return
        raise AssertionError("the devices still change")

    def state(self) -> Any:
        head = self.store._space(SPACE).head if self.store._spaces else 0
        return head, [
            (device.replica.device, device.replica.status().after, device.is_loading)
            for device in self.devices
        ]


#: the steps, with their frequencies
STEPS: dict[Callable[[World], None], int] = {
    World.edit: 45,
    World.sync: 35,
    World.listen: 12,
    World.go_offline: 3,
    World.come_online: 4,
    World.wait: 3,
    World.jump_clock: 2,
    World.kill: 2,
    World.mend: 2,
    World.keep_temporary: 1,
    World.deliver_late: 3,
    World.back_up: 3,
    World.restore: 1,
    World.clone: 1,
    World.join: 1,
    World.copy_service: 2,
    World.restore_service: 1,
    World.erase: 2,
}


def copy_of(store: MemoryStore) -> dict[str, Any]:
    """Makes a backup of the service."""
    return {
        name: replace(copy_of_members(space), state=copy_of_members(space.state))
        for name, space in store._spaces.items()
    }


def copy_of_members(struct: Any) -> Any:
    return replace(
        struct, **{field.name: copy.copy(getattr(struct, field.name)) for field in fields(struct)}
    )
