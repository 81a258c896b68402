"""One run: a load, faults during it, and the outcome of each fault."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .checker import problems
from .faults import Fault, NotMet, Service, World
from .history import Attempt, History, Push
from .load import Client, Device, Poller, TableReader

SPACES = ("north", "south", "east")
DEVICES_EACH = 2
#: how long the load continues after a fault
PEACE_SECONDS = 0.4
RECOVERY_SECONDS_MAX = 60.0


@dataclass
class Outcome:
    """The answers that clients got during all faults of one kind."""

    times: int = 0
    not_met: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  #: time until an answer
    recovery: float = 0.0  #: from the fault's end until each space took a push

    def note(self, attempts: Sequence[Attempt], recovery: float) -> None:
        self.times += 1
        self.recovery = max(self.recovery, recovery)
        for attempt in attempts:
            known = {0: "no answer", 200: "ok"}
            self.answers[attempt.code or known.get(attempt.status, str(attempt.status))] += 1
            self.longest = max(self.longest, attempt.seconds)


class Load:
    """Devices, a follower and a reader of the master table in each of several spaces."""

    def __init__(self, service: Service, seed: int, history: History):
        self.history = history
        self.devices: list[Device] = []
        self.clients: list[Client] = []
        self.readers = {space: service.grant(space, "reader") for space in SPACES}  #: their tokens
        for space, token in self.readers.items():
            for n in range(DEVICES_EACH):
                self.devices.append(Device(service, space, f"{seed} {space} {n}", history))
            for kind in (Poller, TableReader):
                name = f"{seed} {space} {kind.__name__}"
                self.clients.append(kind(service.url, space, token, name, history))
            history.granted |= {id for _, id in service.log(space)}
        self.clients += self.devices

    def start(self) -> None:
        for client in self.clients:
            client.start()
        self.wait_until_served()

    def pace(self, share: float, seconds: float) -> float:
        """Slows the devices down to a share of the highest rate of pushes.

        Measures that rate for so many seconds, and returns it in pushes a second.
        """
        for device in self.devices:
            device.interval = 0.0
        first = len(self.history.attempts)
        time.sleep(seconds)
        lately = self.history.attempts[first:]
        full = sum(isinstance(one, Push) and one.status == 200 for one in lately) / seconds
        for device in self.devices:
            device.interval = len(self.devices) / (share * full)
        return full

    def stop(self) -> None:
        """Stops all clients. Each first repeats its open push until it is answered."""
        for client in self.clients:
            client.stopping.set()
        for client in self.clients:
            client.join(RECOVERY_SECONDS_MAX)
            assert not client.is_alive(), f"{client} has no answer"

    def wait_until_served(self) -> float:
        """Waits until each space has acknowledged a push. Returns the seconds."""
        began = time.monotonic()
        while True:
            served = {
                attempt.space
                for attempt in list(self.history.attempts)
                if isinstance(attempt, Push) and attempt.status == 200 and attempt.began > began
            }
            waited = time.monotonic() - began
            if served >= set(SPACES):
                return waited
            assert waited < RECOVERY_SECONDS_MAX, f"it does not recover: {self._lately(began)}"
            time.sleep(0.05)

    def _lately(self, since: float) -> Counter[tuple[str, str, int, str]]:
        return Counter(
            (type(attempt).__name__, attempt.space, attempt.status, attempt.code)
            for attempt in self.history.attempts
            if attempt.began > since
        )


class Run:
    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        self.history = History()
        self.outcomes: dict[str, Outcome] = {}
        self.world = World(folder, self.rng)
        self.load = Load(self.world.service, seed, self.history)

    def __enter__(self) -> Run:
        self.load.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def do(self, fault: Fault) -> None:
        outcome = self.outcomes.setdefault(fault.name, Outcome())
        first = len(self.history.attempts)
        try:
            fault.do(self.world)
        except NotMet:
            outcome.not_met += 1
            return
        try:
            recovery = self.load.wait_until_served()
        except AssertionError as error:
            raise AssertionError(
                f"after {fault}: {error}\n{self.world.service.log_tail()}"
            ) from error
        time.sleep(PEACE_SECONDS)
        outcome.note(self.history.attempts[first:], recovery)

    def check(self) -> list[str]:
        self.load.stop()
        self.world.service.wait_until_ready()
        logs = {space: self.world.service.log(space) for space in SPACES}
        found = problems(self.history, logs)
        for space in SPACES:
            if wrong := self.world.service.verify(space):
                found.append(f"{space}: {wrong}")
        return found

    def table(self) -> str:
        """The table of faults and outcomes, as in docs/explanation/reliability.md."""
        lines = [
            "| fault | times | ok | 503 storage-unavailable | 503 outcome-unknown | no answer "
            "| longest answer, s | served again after, s |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, outcome in sorted(self.outcomes.items()):
            if outcome.times:
                counts = outcome.answers
                lines.append(
                    f"| {name} | {outcome.times} | {counts['ok']} "
                    f"| {counts['storage-unavailable']} | {counts['outcome-unknown']} "
                    f"| {counts['no answer']} "
                    f"| {outcome.longest:.1f} | {outcome.recovery:.1f} |"
                )
        return "\n".join(lines)
