"""The signer: each checkpoint that it signs is consistent with all earlier ones.

The signer writes each checkpoint to a file, outside of the database, before it publishes it. It
signs the next checkpoint only if the new tree extends the tree of the last one. After a restored
backup or a changed log it stops signing that space and raises an alarm. It resumes when the log is
complete again, or when an admin declares a fork (the log gets a new id, and so a new origin).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import structlog

from foldlog.domain import merkle
from foldlog.domain.errors import NotFound, OperatorError, Unavailable
from foldlog.domain.notes import Checkpoint, InvalidNote, Note, open_checkpoint, origin_of
from foldlog.infrastructure.files import make_folder, sync_folder, write_new
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.proofs.tree import Heads, PostgresProofTree

from .keys import KeyRing, KeysUnusable, read_keys

log = structlog.get_logger("foldlog.signer")

#: A busy log is signed this often.
PAUSE_SECONDS = 1.0
#: The pause is this many times as long as the search for unsigned spaces, which reads all spaces.
PAUSE_PER_SEARCH = 20
#: A space whose signing stopped is tried again after this.
RETRY_SECONDS = 30.0
MODE = 0o600


class SigningStopped(OperatorError):
    """The next checkpoint of a space cannot be signed."""

    code = "signing-stopped"


class LogShrunk(SigningStopped):
    """The log is shorter than its last signed checkpoint."""

    code = "log-shrunk"


class LogForked(SigningStopped):
    """The log differs from its last signed checkpoint."""

    code = "log-forked"


class LastCheckpointUnusable(SigningStopped):
    """The file of the last signed checkpoint cannot be read, or its signature is not ours."""

    code = "last-checkpoint-unusable"


#: Receives each published checkpoint: the space, the id of the log, the note.
OnSigned = Callable[[str, str, Note], None]


def _claimed_size(note: bytes) -> int | None:
    try:
        return Checkpoint.parse(Note.parse(note).text).size
    except InvalidNote:
        return None


class LastSigned:
    """The last signed checkpoint of each log, in a file per log outside of the database."""

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, space: str, log: str) -> Path:
        return self._folder / space / log

    def read(self, space: str, log: str) -> bytes | None:
        """Returns the signed note, if there is one."""
        try:
            return self.path(space, log).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, space: str, log: str, note: bytes) -> None:
        """Saves the note; returns after the file is flushed to the disk."""
        path = self.path(space, log)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._folder, path.parent):
            if not folder.exists():
                make_folder(folder)
                sync_folder(folder.parent)
        write_new(path, note.decode(), MODE)


class CheckpointSigner:
    """Signs checkpoints of all spaces, one after another.

    `last` is the folder of the last checkpoints. `on_signed` is called after each publication.
    """

    def __init__(
        self,
        tree: PostgresProofTree,
        *,
        keys: Path,
        last: Path,
        origin: str,
        on_signed: OnSigned | None = None,
    ):
        self._tree = tree
        self._keys = keys
        self._last = LastSigned(last)
        self._origin = origin
        self._on_signed = on_signed
        self._retry_at: dict[str, float] = {}  #: by space whose signing stopped
        #: The database may have been restored: at the start, and after each failed connection.
        self._may_be_restored = True
        self._pause = PAUSE_SECONDS

    def run(self, closing: Event) -> None:
        """Signs until `closing` is set; meant for a thread of its own."""
        while not closing.wait(self._pause):
            try:
                self.sign_all()
            except (*DATABASE_ERRORS, Unavailable) as exc:
                self._may_be_restored = True
                log.warning("signer_waits_for_the_database", error=str(exc))
            except KeysUnusable as exc:
                log.error("signer_has_no_key", error=str(exc))
                closing.wait(RETRY_SECONDS)
            except Exception:  # the thread must go on, because its end would go unnoticed
                log.exception("signing_failed")
                closing.wait(RETRY_SECONDS)

    def sign_all(self) -> int:
        """Signs each space that has unsigned events; returns the number of new checkpoints."""
        keys = read_keys(self._keys)  # each time, because an operator may rotate them
        if keys.signer("") is None:
            return 0
        began = time.monotonic()
        found = self._tree.to_sign()
        now = time.monotonic()
        due = set(found)
        if self._may_be_restored:
            # A restored log looks completely signed until it grows again.
            due |= self._restored()
            self._may_be_restored = False
        self._pause = max(PAUSE_SECONDS, PAUSE_PER_SEARCH * (now - began))
        ready = sorted(space for space in due if self._retry_at.get(space, now) <= now)
        return sum(self._sign_or_stop(space, keys) for space in ready)

    def _restored(self) -> set[str]:
        """Returns the spaces whose published checkpoint differs from our last signed one."""
        restored = set()
        for space, of_log, shown in self._tree.published():
            note = self._last.read(space, of_log)
            # Signing checks the file itself; here only its size is compared.
            if note is not None and _claimed_size(note) != _claimed_size(shown):
                restored.add(space)
        return restored

    def _sign_or_stop(self, space: str, keys: KeyRing) -> bool:
        """Signs one space. Its errors raise an alarm, and the other spaces are still signed."""
        try:
            signed = self.sign(space, keys)
            self._retry_at.pop(space, None)
            return signed
        except NotFound as exc:
            # A rebuild has just removed the tree, or the space was deleted.
            log.warning("signing_waits_for_the_tree", space=space, why=str(exc))
            return False
        except (SigningStopped, merkle.InvalidProof, OSError) as exc:
            code = exc.code if isinstance(exc, SigningStopped) else SigningStopped.code
            self._retry_at[space] = time.monotonic() + RETRY_SECONDS
            log.error("signing_stopped", space=space, code=code, why=str(exc))
            self._tree.alarm(space, code, str(exc))
            return False

    def sign(self, space: str, keys: KeyRing) -> bool:
        """Signs and publishes the current tree of a space. Raises `SigningStopped`.

        Returns False if another process signs this space, or the tree still has to grow.
        """
        with self._tree.signing(space) as is_ours:
            if not is_ours:
                return False
            heads = self._tree.heads(space)
            origin = origin_of(self._origin, space, heads.log)
            last = self._read_last(space, heads.log, keys)
            if last is not None and last[0].size > heads.size:
                if last[0].size > heads.head:
                    raise LogShrunk(
                        f"{space!r} has {heads.head} events; {last[0].size} were signed. Was an "
                        "older backup restored?"
                    )
                return False  # the projector still has to extend the tree
            checkpoint, note = self._next(space, heads, origin, last, keys)
            if last is None or note.encoded != last[1].encoded:
                self._last.write(space, heads.log, note.encoded)
            self._tree.publish(space, heads.log, checkpoint.size, note.encoded)
        if self._on_signed is not None:
            self._on_signed(space, heads.log, note)
        return True

    def _next(
        self,
        space: str,
        heads: Heads,
        origin: str,
        last: tuple[Checkpoint, Note] | None,
        keys: KeyRing,
    ) -> tuple[Checkpoint, Note]:
        """Returns this tree's checkpoint. Raises `LogForked` if it contradicts the last one."""
        old = Checkpoint(origin, 0, merkle.EMPTY_ROOT) if last is None else last[0]
        proof = self._tree.consistency(space, old.size, heads.size)
        try:
            merkle.check_consistency(
                old.size, old.root, heads.size, proof.new_root, list(proof.path)
            )
        except merkle.InvalidProof as exc:
            raise LogForked(
                f"{space!r} does not begin with the {old.size} events that were signed: {exc}"
            ) from exc
        checkpoint = Checkpoint(origin, heads.size, proof.new_root)
        if last is not None and last[0] == checkpoint:
            return last
        signer = keys.signer(origin)
        assert signer is not None, "sign_all has checked it"
        return checkpoint, Note(checkpoint.text, [signer.sign(checkpoint.text)])

    def _read_last(self, space: str, log: str, keys: KeyRing) -> tuple[Checkpoint, Note] | None:
        encoded = self._last.read(space, log)
        if encoded is None:
            return None
        where = self._last.path(space, log)
        try:
            checkpoint = Checkpoint.parse(Note.parse(encoded).text)
            # The service may have been renamed since: only the log and our key must match.
            found, note = open_checkpoint(encoded, keys.verifiers(checkpoint.origin))
        except InvalidNote as exc:
            raise LastCheckpointUnusable(f"{where}: {exc}") from exc
        if not found.origin.endswith(f"/spaces/{space}/{log}"):
            raise LastCheckpointUnusable(f"{where} is of another log: {found.origin}")
        return found, note
