"""Exchanges cosignatures of checkpoints with other services.

`Witness` cosigns the checkpoints of other services. `Witnesses` requests cosignatures for the
checkpoints of this service.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import httpx
import msgspec
import structlog

from foldlog.domain.errors import AnotherFolder, NotFound, StorageUnavailable
from foldlog.domain.notes import (
    COSIGNATURE,
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
from foldlog.infrastructure.postgres.proofs.signers import Signers
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree

from .folders import FolderUnusable, identify_folder

log = structlog.get_logger("foldlog.witness")

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 * 2**10
MODE = 0o600

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Witness:
    """Cosigns checkpoints of the trusted logs of other services.

    For each log, it saves the last cosigned checkpoint in a file, and compares each new checkpoint
    with it. A file lock covers the comparison and the write of the new checkpoint. Without this
    lock, two requests at the same time could replace a newer checkpoint with an older one.

    `signers` names the one folder that cosigns. A witness with another folder refuses all requests,
    because it knows nothing of the checkpoints that were cosigned before.
    """

    def __init__(
        self, folder: Path, cosigner: Signer, trusted: Sequence[Verifier], signers: Signers
    ):
        self._folder = folder
        self._cosigner = cosigner
        self._trusted = trusted
        self._signers = signers

    def add_checkpoint(self, body: bytes) -> str:
        """Checks the checkpoint in a request body, saves it, and cosigns it.

        Returns the text line with the cosignature. If the check refuses the checkpoint, the method
        raises one of the errors in `domain.witness`. If another folder cosigns, the method raises
        `AnotherFolder`. If the checkpoint cannot be saved, or the database cannot be asked, the
        method raises `StorageUnavailable`.
        """
        asked = AddCheckpoint.parse(body)
        checkpoint = check_signed(asked, self._trusted)
        try:
            with self._held(), self._locked(checkpoint.origin) as path:
                check_follows(asked, checkpoint, read_last(path))
                write_new(path, checkpoint.text, MODE)
        except (OSError, FolderUnusable) as exc:
            raise StorageUnavailable(f"the witness cannot save the checkpoint: {exc}") from exc
        return self._cosigner.cosign(asked.note.text, int(time.time())).line

    def may_cosign(self) -> bool:
        """Tells whether this folder cosigns. If no folder does so yet, this one begins.

        A refusal is stored, as an alarm. Raises `FolderUnusable` if the id of the folder is
        unreadable, and `StorageUnavailable` if the database cannot be asked.
        """
        folder = identify_folder(self._folder)
        key = b64encode(self._cosigner.verifier(COSIGNATURE).public).decode()
        return self._signers.may_sign(folder.folder, [key], taken_over_by=folder.taken_over_by)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keeps a takeover away during the `with` block. Raises `AnotherFolder`."""
        if not self.may_cosign():
            raise AnotherFolder
        folder = identify_folder(self._folder).folder
        with self._signers.holding(folder) as is_ours:
            if not is_ours:
                raise AnotherFolder
            yield

    @contextmanager
    def _locked(self, origin: str) -> Iterator[Path]:
        """Locks the file with the last cosigned checkpoint of a log, and yields the file's path."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self._folder)
        path = self._folder / hashlib.sha256(origin.encode()).hexdigest()
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(lock)


def cosigned_logs(folder: Path) -> list[Path]:
    """Returns a list of the files with the last cosigned checkpoints of a witness."""
    return sorted(path for path in folder.iterdir() if _DIGEST.fullmatch(path.name))


def read_last(path: Path) -> Checkpoint | None:
    """Reads the last cosigned checkpoint from a file. Returns `None` if the file is missing.

    Raises `OSError` if the content of the file is invalid.
    """
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
    """A witness has answered the request, but the answer contains no valid cosignature."""


class _Pending(msgspec.Struct):
    """A published checkpoint that still lacks cosignatures of some witnesses.

    `missing` contains the indexes of these witnesses in the list of all witnesses.
    """

    log: str
    checkpoint: Checkpoint
    note: Note
    missing: list[int]


class _Backoff(msgspec.Struct):
    """Computes when a failed request to a witness may be repeated.

    The delay doubles with each further failure, up to `RETRY_SECONDS_MAX`.
    """

    delay: float = 0.0
    retry_at: float = 0.0

    def failed(self, now: float) -> None:
        self.delay = min(max(2 * self.delay, RETRY_SECONDS_FIRST), RETRY_SECONDS_MAX)
        self.retry_at = now + self.delay


class Witnesses:
    """Requests cosignatures for our checkpoints from other services, and publishes the answers.

    It runs in its own thread, so a slow witness never delays the signer. If a witness fails or
    refuses, the request is repeated after a delay that grows with each failure. The repetition ends
    when the witness cosigns, or when the space has a newer checkpoint.
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
        """Queues a signed checkpoint, for which cosignatures are then requested.

        If an older checkpoint of the same space is still queued, the new one replaces it.
        """
        self._signed.put((space, log, note))

    def run(self, closing: Event) -> None:
        """Requests cosignatures until the event `closing` is set. Call this in a separate thread.

        At first it queues the published checkpoints of all spaces, because some of them may still
        lack cosignatures from before the start.
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
        """Queues the published checkpoints of all spaces, to request their missing cosignatures."""
        for space, of_log, encoded in self._tree.published():
            self.submit(space, of_log, Note.parse(encoded))

    def ask_all(self, closing: Event | None = None) -> None:
        """Requests each missing cosignature once, from the witnesses that may be asked now.

        After a failed request, a witness is asked again only when its delay has passed.
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
        """Requests a cosignature of one checkpoint from one witness, and publishes the cosignature.

        If the request fails, the failure is logged, and the witness is asked again after a delay.
        """
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
        """Sends a checkpoint to a witness, and returns the valid cosignatures in a list.

        The request contains a consistency proof. It proves that the tree of the checkpoint extends
        the tree of the last checkpoint that this witness cosigned. The size of that older tree is
        known from the earlier answers of the witness. If the witness answers that it has stored
        another size, the request is repeated once with a proof for that size.

        Raises `NotCosigned` if the answer contains no valid cosignature. Raises `httpx.HTTPError`
        if the request fails.
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
    """Sends HTTP POST requests, and limits the duration and the size of each answer."""

    def __init__(self) -> None:
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS)

    def post(self, url: str, content: bytes) -> tuple[int, bytes]:
        """Sends a POST request, and returns the status code and the body of the answer.

        Raises `httpx.HTTPError` if the request fails, if the answer is larger than
        `ANSWER_BYTES_MAX`, or if it takes longer than `TIMEOUT_SECONDS`.
        """
        until = time.monotonic() + TIMEOUT_SECONDS
        body = b""
        with self._client.stream("POST", url, content=content) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > ANSWER_BYTES_MAX or time.monotonic() > until:
                    raise httpx.ReadError("its answer is too long or too slow")
        return answer.status_code, body
