"""Exchanges cosignatures with other services.

As a witness, this service cosigns checkpoints of other logs. For its own checkpoints, it requests
cosignatures from other witnesses.
"""

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
from foldlog.infrastructure.files import make_folder, write_new
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree

log = structlog.get_logger("foldlog.witness")

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 * 2**10
MODE = 0o600


class Witness:
    """Cosigns checkpoints of the trusted logs, and saves the last cosigned one of each in a file.

    A file lock for each log covers both the comparison with the last checkpoint and the write of
    the new one. Otherwise, one of two parallel requests could replace a newer checkpoint with an
    older one.
    """

    def __init__(self, folder: Path, cosigner: Signer, trusted: Sequence[Verifier]):
        self._folder = folder
        self._cosigner = cosigner
        self._trusted = trusted

    def add_checkpoint(self, body: bytes) -> str:
        """Checks the checkpoint in a request body and cosigns it.

        Returns the line of the cosignature. Raises the errors of `domain.witness` if the checkpoint
        is refused, and `StorageUnavailable` if saving it fails.
        """
        asked = AddCheckpoint.parse(body)
        checkpoint = check_signed(asked, self._trusted)
        try:
            with self._locked(checkpoint.origin) as path:
                check_follows(asked, checkpoint, _last(path))
                write_new(path, checkpoint.text, MODE)
        except OSError as exc:
            raise StorageUnavailable(f"the witness cannot save the checkpoint: {exc}") from exc
        return self._cosigner.cosign(asked.note.text, int(time.time())).line

    @contextmanager
    def _locked(self, origin: str) -> Iterator[Path]:
        """Locks the file of a log's last cosigned checkpoint, and yields the path of the file."""
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
    """Returns the last cosigned checkpoint in a file, or `None` if the file is missing."""
    try:
        return Checkpoint.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (InvalidNote, UnicodeDecodeError) as exc:
        raise OSError(f"{path} is damaged: {exc}") from exc


#: The first and the longest delay before a failed request is repeated.
RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 1.0, 60.0
PAUSE_SECONDS = 0.5

Post = Callable[[str, bytes], tuple[int, bytes]]


class NotCosigned(Exception):
    """A witness has answered, but its answer lacks a valid cosignature."""


class _Pending(msgspec.Struct):
    """A checkpoint of a space that some witnesses have yet to cosign.

    `missing` contains the indexes of these witnesses.
    """

    log: str
    checkpoint: Checkpoint
    note: Note
    missing: list[int]


class _Backoff(msgspec.Struct):
    """Computes when to try again after a failure.

    Each further failure doubles the delay, up to `RETRY_SECONDS_MAX`.
    """

    delay: float = 0.0
    retry_at: float = 0.0

    def failed(self, now: float) -> None:
        self.delay = min(max(2 * self.delay, RETRY_SECONDS_FIRST), RETRY_SECONDS_MAX)
        self.retry_at = now + self.delay


class Witnesses:
    """Requests cosignatures for our checkpoints from witnesses, and publishes the cosignatures.

    It runs in its own thread, because a slow witness would delay the signer. A witness that fails
    or refuses is asked again, after growing delays, until it cosigns or until a newer checkpoint of
    the space replaces this one.
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
        self._pending: dict[str, _Pending] = {}  #: by space
        #: by witness and origin: the size of the last checkpoint that the witness has cosigned
        self._known_sizes: dict[tuple[int, str], int] = {}
        self._unreachable: defaultdict[int, _Backoff] = defaultdict(_Backoff)  #: by witness
        #: by witness and space
        self._refused: defaultdict[tuple[int, str], _Backoff] = defaultdict(_Backoff)

    def submit(self, space: str, log: str, note: Note) -> None:
        """Queues a signed checkpoint for cosigning.

        It replaces an older checkpoint of the same space.
        """
        self._signed.put((space, log, note))

    def run(self, closing: Event) -> None:
        """Requests cosignatures until `closing` is set. Call this in a separate thread.

        It first queues all checkpoints that are already published, because some of them may still
        lack cosignatures.
        """
        has_started = False
        while not closing.wait(PAUSE_SECONDS):
            try:
                if not has_started:
                    self._submit_published()
                    has_started = True
                self.ask_all(closing)
            except (*DATABASE_ERRORS, StorageUnavailable) as exc:
                log.warning("witnesses_wait_for_the_database", error=str(exc))
            except Exception:  # the thread must go on, because its end would go unnoticed
                log.exception("asking_witnesses_failed")

    def _submit_published(self) -> None:
        """Queues all published checkpoints for cosigning."""
        for space, of_log, encoded in self._tree.published():
            self.submit(space, of_log, Note.parse(encoded))

    def ask_all(self, closing: Event | None = None) -> None:
        """Requests each missing cosignature once.

        It leaves out witnesses that must wait longer after a failure.
        """
        while not self._signed.empty():
            space, of_log, note = self._signed.get()
            missing = [
                index
                for index, (verifier, _) in enumerate(self._witnesses)
                if not any(signature.is_of(verifier) for signature in note.signatures)
            ]
            self._pending[space] = _Pending(of_log, Checkpoint.parse(note.text), note, missing)
        for space, pending in list(self._pending.items()):
            for index in list(pending.missing):
                if closing is not None and closing.is_set():
                    return
                self._ask(space, pending, index)
            if not pending.missing:
                del self._pending[space]

    def _ask(self, space: str, pending: _Pending, index: int) -> None:
        """Requests one cosignature from one witness, and publishes it. Logs a failure."""
        now = self._clock()
        unreachable, refused = self._unreachable[index], self._refused[index, space]
        if max(unreachable.retry_at, refused.retry_at) > now:
            return
        try:
            if self._tree.tree(space).log != pending.log:
                pending.missing.clear()  # the log has forked, so this checkpoint is obsolete
                return
            lines = self._cosignatures(space, pending, index)
        except httpx.HTTPError as exc:
            unreachable.failed(self._clock())
            self._warn(space, index, exc)
        except (NotCosigned, InvalidNote, NotFound) as exc:
            del self._unreachable[index]  # it answered
            refused.failed(self._clock())
            self._warn(space, index, exc)
        else:
            del self._unreachable[index], self._refused[index, space]
            pending.missing.remove(index)
            pending.note = pending.note.with_signatures(lines)
            self._tree.publish(space, pending.log, pending.checkpoint.size, pending.note.encoded)

    def _warn(self, space: str, index: int, exc: Exception) -> None:
        url = self._witnesses[index][1]
        log.warning("witness_does_not_cosign", url=url, space=space, why=str(exc))

    def _cosignatures(self, space: str, pending: _Pending, index: int) -> list[Signature]:
        """Sends a checkpoint to a witness, and returns the valid cosignatures in the answer.

        If the witness answers that it knows another tree size of the log, the request is repeated
        with a proof from this size. Raises `NotCosigned` if the witness refuses, and
        `httpx.HTTPError` if the request fails.
        """
        verifier, url = self._witnesses[index]
        note, size = pending.note, pending.checkpoint.size
        key = (index, pending.checkpoint.origin)
        for _ in range(2):
            old = self._known_sizes.get(key, 0)
            if old > size:
                raise NotCosigned(f"it has seen {old} events, but the checkpoint has {size}")
            proof = self._tree.consistency(space, old, size).path
            body = AddCheckpoint(old, proof, note).encoded
            status, answer = self._post(f"{url}/add-checkpoint", body)
            if status != httpx.codes.CONFLICT:
                break
            seen = answer.strip()
            if not seen.isdigit() or len(seen) > 19 or int(seen) == old:
                raise NotCosigned("it has seen another log")
            self._known_sizes[key] = int(seen)
        if status != httpx.codes.OK:
            raise NotCosigned(f"it answers {status}: {answer[:200]!r}")
        lines = [
            line
            for line in signature_lines(answer.decode("utf-8", "replace"))
            if line.is_of(verifier) and verifier.verifies(note.text, line.signature)
        ]
        if not lines:
            raise NotCosigned("its answer has no valid cosignature of its key")
        self._known_sizes[key] = size
        return lines


class _Http:
    """Sends HTTP requests, and limits the time and the size of each answer."""

    def __init__(self) -> None:
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS)

    def post(self, url: str, content: bytes) -> tuple[int, bytes]:
        """Sends a POST request, and returns the status code and the body of the answer.

        Raises `httpx.HTTPError` if the request fails, or if the answer is too long or too slow.
        """
        until = time.monotonic() + TIMEOUT_SECONDS
        body = b""
        with self._client.stream("POST", url, content=content) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > ANSWER_BYTES_MAX or time.monotonic() > until:
                    raise httpx.ReadError("its answer is too long or too slow")
        return answer.status_code, body
