"""Witnesses: being one, and asking others."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import httpx
import msgspec
import structlog

from foldlog.domain.errors import NotFound, StorageUnavailable
from foldlog.domain.notes import (
    Checkpoint,
    InvalidNote,
    Note,
    Signature,
    Signer,
    Verifier,
    signature_lines,
)
from foldlog.domain.witness import AddCheckpoint, check_follows, check_signed
from foldlog.infrastructure.embedded.folder import make_folder, write_new
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree

log = structlog.get_logger("foldlog.witness")

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 * 2**10
MODE = 0o600


class Witness:
    """Cosigns checkpoints of the logs it knows. The last one of each is a file.

    What was cosigned is compared, and flushed, under a lock: two requests at once could else roll
    it back.
    """

    def __init__(self, folder: Path, cosigner: Signer, trusted: Sequence[Verifier]):
        self._folder = folder
        self._cosigner = cosigner
        self._trusted = trusted

    def add_checkpoint(self, body: bytes) -> str:
        """The cosignature as a line. Raises what `domain.witness` raises."""
        asked = AddCheckpoint.parse(body)
        checkpoint = check_signed(asked, self._trusted)
        try:
            with self._locked(checkpoint.origin) as path:
                check_follows(asked, checkpoint, _last(path))
                write_new(path, checkpoint.text, MODE)
        except OSError as exc:
            raise StorageUnavailable(f"the witness cannot keep what it saw: {exc}") from exc
        return self._cosigner.cosign(asked.note.text, int(time.time())).line

    @contextmanager
    def _locked(self, origin: str) -> Iterator[Path]:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self._folder)
        path = self._folder / hashlib.sha256(origin.encode()).hexdigest()
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(lock)


def _last(path: Path) -> Checkpoint | None:
    try:
        return Checkpoint.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (InvalidNote, UnicodeDecodeError) as exc:
        raise OSError(f"{path} is damaged: {exc}") from exc


#: asked again after a failure: first, and at most
RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 1.0, 60.0
PAUSE_SECONDS = 0.5

Post = Callable[[str, bytes], tuple[int, bytes]]


class NotCosigned(Exception):
    """A witness did answer, but did not cosign this."""


class _Asked(msgspec.Struct):
    """The last checkpoint of a space, and which of the witnesses have not cosigned it."""

    log: str
    checkpoint: Checkpoint
    note: Note
    missing: list[int]


class _Pace(msgspec.Struct):
    """When to try again: later each time, until it goes well."""

    wait: float = 0.0
    until: float = 0.0

    def failed(self, now: float) -> None:
        self.wait = min(max(2 * self.wait, RETRY_SECONDS_FIRST), RETRY_SECONDS_MAX)
        self.until = now + self.wait


class Witnesses:
    """Asks others to cosign our checkpoints, and publishes what they say.

    Beside the signer and not on its way: a witness that is slow holds up nobody else. Who does not
    cosign is asked again, less and less often, until it does or there is a newer checkpoint.
    """

    def __init__(
        self,
        tree: PostgresProofTree,
        witnesses: Sequence[tuple[Verifier, str]],
        *,
        post: Post | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._tree = tree
        self._witnesses = witnesses
        self._post = post or _Http().post
        self._clock = clock
        self._signed: SimpleQueue[tuple[str, str, Note]] = SimpleQueue()
        self._asked: dict[str, _Asked] = {}  #: by space
        self._seen: dict[tuple[int, str], int] = {}  #: what a witness has seen of an origin
        self._silent: defaultdict[int, _Pace] = defaultdict(_Pace)  #: witnesses
        self._refused: defaultdict[tuple[int, str], _Pace] = defaultdict(_Pace)  #: of a space

    def ask(self, space: str, log: str, note: Note) -> None:
        """Has this checkpoint cosigned, in place of an older one of the space."""
        self._signed.put((space, log, note))

    def run(self, closing: Event) -> None:
        """Until that is set. What a process before this one has left is gone on with."""
        is_begun = False
        while not closing.wait(PAUSE_SECONDS):
            try:
                if not is_begun:
                    self._take_up()
                    is_begun = True
                self.ask_all(closing)
            except (*DATABASE_ERRORS, StorageUnavailable) as exc:
                log.warning("witnesses_wait_for_the_database", error=str(exc))
            except Exception:  # a thread that ended would be missed by nobody
                log.exception("asking_witnesses_failed")

    def _take_up(self) -> None:
        for space, of_log, encoded in self._tree.published():
            self.ask(space, of_log, Note.parse(encoded))

    def ask_all(self, closing: Event | None = None) -> None:
        """Asks whoever is to be asked now, once for each space."""
        while not self._signed.empty():
            space, of_log, note = self._signed.get()
            missing = [
                index
                for index, (verifier, _) in enumerate(self._witnesses)
                if not any(signature.is_of(verifier) for signature in note.signatures)
            ]
            self._asked[space] = _Asked(of_log, Checkpoint.parse(note.text), note, missing)
        for space, asked in list(self._asked.items()):
            for index in list(asked.missing):
                if closing is not None and closing.is_set():
                    return
                self._ask(space, asked, index)
            if not asked.missing:
                del self._asked[space]

    def _ask(self, space: str, asked: _Asked, index: int) -> None:
        now = self._clock()
        silent, refused = self._silent[index], self._refused[index, space]
        if max(silent.until, refused.until) > now:
            return
        try:
            if self._tree.tree(space).log != asked.log:
                asked.missing.clear()  # it has forked: nobody asks for this one any more
                return
            lines = self._cosignatures(space, asked, index)
        except httpx.HTTPError as exc:
            silent.failed(self._clock())
            self._warn(space, index, exc)
        except (NotCosigned, InvalidNote, NotFound) as exc:
            del self._silent[index]  # it is there
            refused.failed(self._clock())
            self._warn(space, index, exc)
        else:
            del self._silent[index], self._refused[index, space]
            asked.missing.remove(index)
            asked.note = asked.note.with_signatures(lines)
            self._tree.publish(space, asked.log, asked.checkpoint.size, asked.note.encoded)

    def _warn(self, space: str, index: int, exc: Exception) -> None:
        url = self._witnesses[index][1]
        log.warning("witness_does_not_cosign", url=url, space=space, why=str(exc))

    def _cosignatures(self, space: str, asked: _Asked, index: int) -> list[Signature]:
        verifier, url = self._witnesses[index]
        note, size = asked.note, asked.checkpoint.size
        key = (index, asked.checkpoint.origin)
        for _ in range(2):
            old = self._seen.get(key, 0)
            if old > size:
                raise NotCosigned(f"it has seen {old} events, and there are {size}")
            proof = self._tree.consistency(space, old, size).path
            body = AddCheckpoint(old, proof, note).encoded
            status, answer = self._post(f"{url}/add-checkpoint", body)
            if status != httpx.codes.CONFLICT:
                break
            seen = answer.strip()
            if not seen.isdigit() or len(seen) > 19 or int(seen) == old:
                raise NotCosigned("it has seen another log")
            self._seen[key] = int(seen)
        if status != httpx.codes.OK:
            raise NotCosigned(f"it answers {status}: {answer[:200]!r}")
        lines = [
            line
            for line in signature_lines(answer.decode("utf-8", "replace"))
            if line.is_of(verifier) and verifier.verifies(note.text, line.signature)
        ]
        if not lines:
            raise NotCosigned("it sent no cosignature of its key")
        self._seen[key] = size
        return lines


class _Http:
    """Asks within bounds, whoever answers."""

    def __init__(self) -> None:
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS)

    def post(self, url: str, content: bytes) -> tuple[int, bytes]:
        """Status and body. Raises `httpx.HTTPError`."""
        until = time.monotonic() + TIMEOUT_SECONDS
        body = b""
        with self._client.stream("POST", url, content=content) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > ANSWER_BYTES_MAX or time.monotonic() > until:
                    raise httpx.ReadError("its answer is too long, or takes too long")
        return answer.status_code, body
