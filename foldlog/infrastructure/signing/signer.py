"""The signer: what it has signed once it never contradicts, whatever becomes of the database.

The last checkpoint of each log is on the disk, outside of the database, before anybody can see it.
The next one is signed only if it is a tree that begins with that one. A restored backup, a log that
somebody changed: then it stops for that space, says so, and goes on when the log is again the one
it was, or when an admin has declared the fork (the log gets another id, and so another origin).
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
from foldlog.infrastructure.embedded.folder import make_folder, sync_folder, write_new
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.proofs.tree import Heads, PostgresProofTree

from .keys import KeyRing, KeysUnusable, read_keys

log = structlog.get_logger("foldlog.signer")

#: a busy log is signed so often
PAUSE_SECONDS = 1.0
#: looking at all spaces for what there is to sign takes no more than one in so many seconds
LOOK_SHARE = 20
#: what stopped is tried again after this
RETRY_SECONDS = 30.0
#: the file is read by who audits; it tells no more than the service does
MODE = 0o600


class SigningStopped(OperatorError):
    """The next checkpoint of a space cannot be signed."""

    code = "signing-stopped"


class LogShrunk(SigningStopped):
    """The log ends before the last checkpoint that was signed of it."""

    code = "log-shrunk"


class LogForked(SigningStopped):
    """The log does not begin with what was signed of it."""

    code = "log-forked"


class LastCheckpointUnusable(SigningStopped):
    """The last checkpoint that was signed cannot be read, or was not signed by us."""

    code = "last-checkpoint-unusable"


#: is told of each checkpoint that was published: the space, the log's id, the note
OnSigned = Callable[[str, str, Note], None]


def _claimed_size(note: bytes) -> int | None:
    try:
        return Checkpoint.parse(Note.parse(note).text).size
    except InvalidNote:
        return None


class LastSigned:
    """The last checkpoint of each log as it was signed, a file each: it outlives the database."""

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, space: str, log: str) -> Path:
        return self._folder / space / log

    def read(self, space: str, log: str) -> bytes | None:
        try:
            return self.path(space, log).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, space: str, log: str, note: bytes) -> None:
        """Returns when it is on the disk."""
        path = self.path(space, log)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._folder, path.parent):
            if not folder.exists():
                make_folder(folder)
                sync_folder(folder.parent)
        write_new(path, note.decode(), MODE)


class CheckpointSigner:
    """Signs checkpoints of all spaces, one after another."""

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
        self._stopped: dict[str, float] = {}  #: until when
        #: the database may be another one than it was: at first, and after it was away
        self._is_doubted = True
        self._pause = PAUSE_SECONDS

    def run(self, closing: Event) -> None:
        """Until that is set."""
        while not closing.wait(self._pause):
            try:
                self.sign_all()
            except (*DATABASE_ERRORS, Unavailable) as exc:
                self._is_doubted = True
                log.warning("signer_waits_for_the_database", error=str(exc))
            except KeysUnusable as exc:
                log.error("signer_has_no_key", error=str(exc))
                closing.wait(RETRY_SECONDS)
            except Exception:  # a thread that ended would be missed by nobody
                log.exception("signing_failed")
                closing.wait(RETRY_SECONDS)

    def sign_all(self) -> int:
        """Signs what there is to sign; returns how many checkpoints that were."""
        keys = read_keys(self._keys)  # anew: somebody may have rotated them
        if keys.signer("") is None:
            return 0
        began = time.monotonic()
        found = self._tree.to_sign()
        now = time.monotonic()
        due = set(found)
        if self._is_doubted:
            # A log that was restored, and has not grown since, looks as if all of it were signed.
            due |= self._restored()
            self._is_doubted = False
        self._pause = max(PAUSE_SECONDS, LOOK_SHARE * (now - began))
        ready = sorted(space for space in due if self._stopped.get(space, now) <= now)
        return sum(self._sign_or_stop(space, keys) for space in ready)

    def _restored(self) -> set[str]:
        """Spaces that show an older checkpoint than the last one that was signed."""
        restored = set()
        for space, of_log, shown in self._tree.published():
            note = self._last.read(space, of_log)
            # Only looked at here: whether it is any good is found out on signing.
            if note is not None and _claimed_size(note) != _claimed_size(shown):
                restored.add(space)
        return restored

    def _sign_or_stop(self, space: str, keys: KeyRing) -> bool:
        """What is wrong with one space keeps no other from being signed."""
        try:
            signed = self.sign(space, keys)
            self._stopped.pop(space, None)
            return signed
        except NotFound as exc:
            # Its tree, or all of it, has just gone: a rebuild, a space that was taken away.
            log.warning("signing_waits_for_the_tree", space=space, why=str(exc))
            return False
        except (SigningStopped, merkle.InvalidProof, OSError) as exc:
            code = exc.code if isinstance(exc, SigningStopped) else SigningStopped.code
            self._stopped[space] = time.monotonic() + RETRY_SECONDS
            log.error("signing_stopped", space=space, code=code, why=str(exc))
            self._tree.alarm(space, code, str(exc))
            return False

    def sign(self, space: str, keys: KeyRing) -> bool:
        """Signs and publishes the tree as it is. Raises `SigningStopped`."""
        with self._tree.signing(space) as is_ours:
            if not is_ours:
                return False
            heads = self._tree.heads(space)
            origin = origin_of(self._origin, space, heads.log)
            kept = self._kept(space, heads.log, keys)
            if kept is not None and kept[0].size > heads.size:
                if kept[0].size > heads.head:
                    raise LogShrunk(
                        f"{space!r} has {heads.head} events; {kept[0].size} were signed. Was an "
                        "older backup restored?"
                    )
                return False  # the tree is not there yet
            checkpoint, note = self._next(space, heads, origin, kept, keys)
            if kept is None or note.encoded != kept[1].encoded:
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
        kept: tuple[Checkpoint, Note] | None,
        keys: KeyRing,
    ) -> tuple[Checkpoint, Note]:
        """The checkpoint of this tree, which begins with what was signed before."""
        old = Checkpoint(origin, 0, merkle.EMPTY_ROOT) if kept is None else kept[0]
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
        if kept is not None and kept[0] == checkpoint:
            return kept
        signer = keys.signer(origin)
        assert signer is not None, "looked at before"
        return checkpoint, Note(checkpoint.text, [signer.sign(checkpoint.text)])

    def _kept(self, space: str, log: str, keys: KeyRing) -> tuple[Checkpoint, Note] | None:
        encoded = self._last.read(space, log)
        if encoded is None:
            return None
        where = self._last.path(space, log)
        try:
            checkpoint = Checkpoint.parse(Note.parse(encoded).text)
            # The service may have had another name: what counts is that it is this log, and ours.
            found, note = open_checkpoint(encoded, keys.verifiers(checkpoint.origin))
        except InvalidNote as exc:
            raise LastCheckpointUnusable(f"{where}: {exc}") from exc
        if not found.origin.endswith(f"/spaces/{space}/{log}"):
            raise LastCheckpointUnusable(f"{where} is of another log: {found.origin}")
        return found, note
