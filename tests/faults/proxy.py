"""A proxy between the service and PostgreSQL that breaks connections at a chosen statement.

It connects one local socket to another, and parses PostgreSQL's messages. It can cut a connection
before a statement, within it, within its answer, or between the statement and its answer.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from contextlib import suppress
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
PIECE_BYTES = 64 * 2**10

#: where the connection of a statement is cut
CUTS = ("cut before", "cut in the midst", "cut in the answer", "answer lost")
SLOW = ("delay", "silence", "answer withheld")
DELAY_SECONDS = 1.5

#: A part of each statement of a projector's batch, by the statement's name.
OF_PROJECTOR = {
    "lock the position": "FOR UPDATE SKIP LOCKED",
    "read to project": "'skipped/1'",
    "write records": "INSERT INTO records",
    "advance the position": "SET position",
}
#: The same of an append. The first match counts.
STATEMENTS = OF_PROJECTOR | {
    "who calls": "FROM tokens",
    "append": "WITH moved AS",
    "look under the lock": "FOR UPDATE",
    "move the head": "UPDATE spaces",
    "copy": "COPY events",
    "begin": "BEGIN",
    "commit": "COMMIT",
}


class _Reading:
    """Splits the messages of a client into units, each of which asks for an answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._prepared: dict[bytes, str] = {}
        self._has_begun = False
        self._unit = b""
        self._name: str | None = None

    def feed(self, data: bytes) -> list[tuple[bytes, str | None]]:
        """Returns the complete units, each with the name of its statement."""
        self._rest += data
        units: list[tuple[bytes, str | None]] = []
        while message := self._next():
            self._unit += message
            kind, body = (message[:1], message[5:]) if self._has_begun else (b"", b"")
            if kind in (b"P", b"Q", b"B"):
                self._note(kind, body)
            if kind in (b"", b"S", b"Q", b"H", b"p", b"X", b"c", b"f", b"d"):
                units.append((self._unit, self._name))
                self._unit, self._name = b"", None
            self._has_begun = True
        return units

    def _next(self) -> bytes:
        start = 1 if self._has_begun else 0
        if len(self._rest) < start + 4:
            return b""
        size = start + int(struct.unpack_from("!i", self._rest, start)[0])
        if len(self._rest) < size:
            return b""
        message, self._rest = self._rest[:size], self._rest[size:]
        return message

    def _note(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            self._prepared[name] = _known(query)
            found = self._prepared[name]
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            found = self._prepared.get(name, "")
        else:
            found = _known(body)
        self._name = self._name or found or None


def _known(query: bytes) -> str:
    text = query.decode("utf-8", "replace")
    return next((name for name, part in STATEMENTS.items() if part in text), "")


class Proxy:
    """Listens in `folder`, and forwards to the server in `upstream`."""

    def __init__(self, folder: Path, upstream: Path):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        self.folder = folder
        self._upstream = upstream / SOCKET
        self._armed: tuple[str, str] | None = None
        self.hit = threading.Event()  #: the armed fault was done
        self.is_cut = False  #: as if the network is down
        self.is_silent = False  #: as if the network drops all packets
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def arm(self, fault: str, statement: str) -> None:
        """Prepares a fault for the next such statement."""
        self.hit.clear()
        self._armed = (fault, statement)

    def disarm(self) -> None:
        self._armed = None

    def cut_all(self) -> None:
        self._loop.call_soon_threadsafe(self._cut_all)

    def close(self) -> None:
        self.is_cut = True
        self.cut_all()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _cut_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        path = self.folder / SOCKET
        path.unlink(missing_ok=True)
        server = asyncio.start_unix_server(self._serve, path)
        self._loop.run_until_complete(server)
        path.chmod(0o666)
        self._loop.run_forever()

    async def _serve(self, down: asyncio.StreamReader, to_down: asyncio.StreamWriter) -> None:
        try:
            if self.is_cut:
                raise ConnectionError
            up, to_up = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            to_down.transport.abort()
            return
        link = _Link(self, to_up, to_down)
        self._open |= {to_up, to_down}
        ways = [asyncio.create_task(link.pass_down(up)), asyncio.create_task(link.pass_up(down))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for writer in (to_up, to_down):
            self._open.discard(writer)
            writer.transport.abort()

    def take(self, statement: str | None) -> str | None:
        """Returns the prepared fault for this statement, once."""
        if self._armed is None or statement is None or self._armed[1] != statement:
            return None
        fault, self._armed = self._armed[0], None
        self.hit.set()
        return fault


class _Link:
    """One connection through the proxy. It ends when either direction ends."""

    def __init__(self, proxy: Proxy, up: asyncio.StreamWriter, down: asyncio.StreamWriter):
        self._proxy = proxy
        self._up = up
        self._down = down
        self._answers = ""  #: the fault of the following answers

    async def pass_up(self, reader: asyncio.StreamReader) -> None:
        reading = _Reading()
        with suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                for unit, statement in reading.feed(data):
                    fault = self._proxy.take(statement)
                    if fault == "cut before":
                        return
                    if fault == "cut in the midst":
                        self._up.write(unit[: len(unit) // 2])
                        await self._up.drain()
                        return
                    if fault == "delay":
                        await asyncio.sleep(DELAY_SECONDS)
                    elif fault is not None:
                        self._answers = fault
                    while self._proxy.is_silent or self._answers == "silence":
                        if reader.at_eof():
                            return  # the waiting client has closed the connection
                        await asyncio.sleep(0.05)
                    self._up.write(unit)
                    await self._up.drain()

    async def pass_down(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                if self._answers == "answer lost":
                    return
                if self._answers == "cut in the answer":
                    self._down.write(data[: len(data) // 2])
                    await self._down.drain()
                    return
                while self._proxy.is_silent or self._answers == "answer withheld":
                    await asyncio.sleep(0.05)
                self._down.write(data)
                await self._down.drain()
