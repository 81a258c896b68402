"""Signs checkpoints, and makes sure that each one is consistent with all earlier ones of its log.

The signer first saves each checkpoint in a file outside of the database, and then publishes it.
Before it signs a new checkpoint, it proves that the new tree is an extension of the tree of the
last signed checkpoint. This fails if an old backup was restored or the log was changed. The signer
then stops signing this space and raises an alarm.

The signer continues with this space when the log contains all signed events again. It also
continues when an admin declares a fork, which gives the log a new id and so a new origin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import structlog

from foldlog.domain import merkle
from foldlog.domain.errors import FoldlogError, LogIncomplete, NotFound, OperatorError, Unavailable
from foldlog.domain.notes import Checkpoint, InvalidNote, Note, open_checkpoint, origin_of
from foldlog.infrastructure.files import make_folder, sync_folder, write_new
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.log.alarms import incomplete
from foldlog.infrastructure.postgres.proofs.tree import Heads, PostgresProofTree

from .keys import KeyRing, KeysUnusable, read_keys

log = structlog.get_logger("foldlog.signer")

#: A busy log is signed this often.
PAUSE_SECONDS = 1.0
#: The pause is this many times as long as the search for unsigned spaces, which reads all spaces.
PAUSE_PER_SEARCH = 20
#: A search that waited for a lock must not keep checkpoints away for long.
PAUSE_SECONDS_MAX = 10.0
#: A space whose signing has stopped is tried again after this time.
RETRY_SECONDS = 30.0
#: A checkpoint is signed after this many of the last events, at least, were counted.
COUNTED_EVENTS = 20_000
MODE = 0o600


class SigningStopped(OperatorError):
    """The signing of a space has stopped, because an error prevents its next checkpoint."""

    code = "signing-stopped"


class LogShrunk(SigningStopped):
    """The log contains fewer events than the tree of its last signed checkpoint."""

    code = "log-shrunk"


class LogForked(SigningStopped):
    """The log contradicts its last signed checkpoint, because events were changed after signing."""

    code = "log-forked"


class LastCheckpointUnusable(SigningStopped):
    """The file of the last signed checkpoint is unreadable, or the signature in it is invalid."""

    code = "last-checkpoint-unusable"


#: A function that receives each published checkpoint: the space, the id of the log, the note.
OnSigned = Callable[[str, str, Note], None]


def _claimed_size(note: bytes) -> int | None:
    """Returns the tree size that a signed note contains. The signature is left unchecked.

    Returns `None` if the note is invalid.
    """
    try:
        return Checkpoint.of(note).size
    except InvalidNote:
        return None


class LastSigned:
    """Stores the last signed checkpoint of each log, in one file for each log.

    These files are outside of the database, so they stay when a backup of the database is restored.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, space: str, log: str) -> Path:
        return self._folder / space / log

    def read(self, space: str, log: str) -> bytes | None:
        """Returns the last signed checkpoint of a log, or `None` if none was signed yet."""
        try:
            return self.path(space, log).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, space: str, log: str, note: bytes) -> None:
        """Saves the last signed checkpoint of a log, and flushes it to the disk."""
        path = self.path(space, log)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._folder, path.parent):
            if not folder.exists():
                make_folder(folder)
                sync_folder(folder.parent)
        write_new(path, note.decode(), MODE)


class CheckpointSigner:
    """Signs the checkpoints of all spaces, one space after another.

    `keys` is the folder with the key file, and `last` the folder with the last signed checkpoint of
    each log. After each publication of a checkpoint, the signer calls `on_signed(space, log,
    note)`, where `log` is the id of the log and `note` contains the checkpoint and its signature.
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
        #: True at the start and after a failed connection, because a backup may have been restored.
        self._may_be_restored = True
        self._pause = PAUSE_SECONDS

    def run(self, closing: Event) -> None:
        """Signs checkpoints until the event `closing` is set. Call this in a separate thread."""
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
        """Signs and publishes a checkpoint for each space that has unsigned events.

        Returns how many checkpoints were published. If the signing of a space failed, the space is
        left out until `RETRY_SECONDS` have passed since the failure.
        """
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
        wanted = PAUSE_PER_SEARCH * (now - began)
        self._pause = min(max(PAUSE_SECONDS, wanted), PAUSE_SECONDS_MAX)
        ready = sorted(space for space in due if self._retry_at.get(space, now) <= now)
        return sum(self._sign_or_stop(space, keys) for space in ready)

    def _restored(self) -> set[str]:
        """Returns the set of spaces whose database may have been restored from an old backup.

        For these spaces, the published checkpoint in the database has another tree size than the
        last signed checkpoint in the file. The sizes also differ if the service crashed after it
        saved a checkpoint and before it published the checkpoint.
        """
        restored = set()
        for space, of_log, shown in self._tree.published():
            note = self._last.read(space, of_log)
            # Signing checks the file itself; here only its size is compared.
            if note is not None and _claimed_size(note) != _claimed_size(shown):
                restored.add(space)
        return restored

    def _sign_or_stop(self, space: str, keys: KeyRing) -> bool:
        """Signs a checkpoint of one space, and returns whether it was published.

        If the signing fails, the method returns `False`, so that the caller can continue with the
        other spaces. It then also raises an alarm for this space, unless the tree of the space is
        missing.
        """
        try:
            signed = self.sign(space, keys)
            self._retry_at.pop(space, None)
            return signed
        except NotFound as exc:
            # A rebuild has just removed the tree, or the space was deleted.
            log.warning("signing_waits_for_the_tree", space=space, why=str(exc))
            return False
        except (SigningStopped, LogIncomplete, merkle.InvalidProof, OSError) as exc:
            code = exc.code if isinstance(exc, FoldlogError) else SigningStopped.code
            self._retry_at[space] = time.monotonic() + RETRY_SECONDS
            log.error("signing_stopped", space=space, code=code, why=str(exc))
            self._tree.alarm(space, code, str(exc))
            return False

    def sign(self, space: str, keys: KeyRing) -> bool:
        """Signs a checkpoint of a space's current tree, publishes it, and returns `True`.

        Returns `False`, without signing, if another process is signing this space at the moment.
        Also returns `False` if the tree is behind: it lacks events that are in the log and were
        already signed.

        Raises `LogShrunk` if the log has fewer events than were signed. Raises `LogForked` if
        signed events have changed, and `LogIncomplete` if events are missing. Raises
        `LastCheckpointUnusable` if the file of the last
        checkpoint is unreadable or invalid.
        """
        with self._tree.signing(space) as is_ours:
            if not is_ours:
                return False
            heads = self._tree.heads(space)
            origin = origin_of(self._origin, space, heads.log)
            last = self._read_last(space, heads.log, keys)
            size = 0 if last is None else last[0].size
            if size > heads.head:
                raise LogShrunk(
                    f"{space!r} has {heads.head} events; {size} were signed. Was an older backup "
                    "restored?"
                )
            if size > heads.size:
                return False  # the projector still has to extend the tree
            self._check_whole(space, heads, size)
            checkpoint, note = self._next(space, heads, origin, last, keys)
            if last is None or note.encoded != last[1].encoded:
                self._last.write(space, heads.log, note.encoded)
            self._tree.publish(space, heads.log, checkpoint.size, note.encoded)
        if self._on_signed is not None:
            self._on_signed(space, heads.log, note)
        return True

    def _check_whole(self, space: str, heads: Heads, signed: int) -> None:
        """Counts the events that a checkpoint is about to sign, and some that were signed before.

        Raises `LogIncomplete` if events are missing in the log.
        """
        if heads.alarm is not None:
            raise incomplete(space, heads.alarm)
        after = min(signed, max(0, heads.size - COUNTED_EVENTS))
        self._tree.check_whole(space, after=after, size=heads.size)

    def _next(
        self,
        space: str,
        heads: Heads,
        origin: str,
        last: tuple[Checkpoint, Note] | None,
        keys: KeyRing,
    ) -> tuple[Checkpoint, Note]:
        """Makes the next checkpoint from the current tree, and signs it.

        Returns a pair: the checkpoint, and a signed note that contains its text. If the tree is
        unchanged since the last checkpoint, the last checkpoint and its note are returned. Raises
        `LogForked` if the tree contradicts the last checkpoint.
        """
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
        """Reads the last signed checkpoint of a log from its file.

        Returns a pair: the checkpoint, and the signed note that contains its text. Returns `None`
        if the file is missing, because the log has no signed checkpoint yet. Raises
        `LastCheckpointUnusable` if the file is invalid, if its signature is invalid, or if it
        belongs to another log.
        """
        encoded = self._last.read(space, log)
        if encoded is None:
            return None
        where = self._last.path(space, log)
        try:
            checkpoint = Checkpoint.of(encoded)
            # Only the log and our key must match, because the service may have been renamed since.
            found, note = open_checkpoint(encoded, keys.verifiers(checkpoint.origin))
        except InvalidNote as exc:
            raise LastCheckpointUnusable(f"{where}: {exc}") from exc
        if not found.origin.endswith(f"/spaces/{space}/{log}"):
            raise LastCheckpointUnusable(f"{where} is of another log: {found.origin}")
        return found, note
