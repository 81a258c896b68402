"""Witnesses: being one, and asking others."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import structlog

from ..domain.errors import FoldlogError, StorageUnavailable
from ..domain.notes import (
    Checkpoint,
    InvalidNote,
    Note,
    Signature,
    Signer,
    Verifier,
    signature_lines,
)
from ..domain.ports import ProofTree
from ..domain.witness import AddCheckpoint, check_follows, check_signed
from .embedded.folder import make_folder, write_new

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


class Witnesses:
    """Asks others to cosign our checkpoints. Who does not answer is asked again with the next."""

    def __init__(
        self,
        tree: ProofTree,
        witnesses: Sequence[tuple[Verifier, str]],
        *,
        post: Callable[..., httpx.Response] | None = None,
    ):
        self._tree = tree
        self._witnesses = witnesses
        self._post = post or httpx.Client(timeout=TIMEOUT_SECONDS).post
        self._seen: dict[tuple[str, str], int] = {}  #: what a witness has seen of an origin

    def __call__(self, space: str, note: Note) -> list[Signature]:
        found: list[Signature] = []
        for verifier, url in self._witnesses:
            try:
                found += self._ask(space, note, verifier, url)
            except (httpx.HTTPError, FoldlogError, InvalidNote) as exc:
                log.warning("witness_does_not_cosign", url=url, space=space, why=str(exc))
        return found

    def _ask(self, space: str, note: Note, verifier: Verifier, url: str) -> list[Signature]:
        checkpoint = Checkpoint.parse(note.text)
        key = (verifier.vkey, checkpoint.origin)
        for _ in range(2):
            old = self._seen.get(key, 0)
            if old > checkpoint.size:
                raise InvalidNote(f"it has seen {old} events, and there are {checkpoint.size}")
            proof = self._tree.consistency(space, old, checkpoint.size).path
            body = AddCheckpoint(old, proof, note).encoded
            answer = self._post(f"{url}/add-checkpoint", content=body)
            if answer.status_code != httpx.codes.CONFLICT:
                break
            size = answer.text.strip()
            if not size.isdecimal() or len(size) > 19 or int(size) == old:
                raise InvalidNote("it has seen another log")
            self._seen[key] = int(size)
        if answer.status_code != httpx.codes.OK or len(answer.content) > ANSWER_BYTES_MAX:
            raise InvalidNote(f"it answers {answer.status_code}: {answer.text[:200]}")
        lines = [line for line in signature_lines(answer.text) if line.is_of(verifier)]
        if not any(verifier.verifies(note.text, line.signature) for line in lines):
            raise InvalidNote("it sent no cosignature of its key")
        self._seen[key] = checkpoint.size
        return [line for line in lines if verifier.verifies(note.text, line.signature)]
