"""Signs checkpoints, and makes sure that each one is consistent with all earlier ones of its log.

The signer first saves each checkpoint in a file outside of the database, and then publishes it.
Before it signs a new checkpoint, it proves that the new tree is an extension of the tree of the
last signed checkpoint. This fails if an old backup was restored or the log was changed. The signer
then stops signing this space and raises an alarm.

The signer continues with this space when the log contains all signed events again. It also
continues when an admin declares a fork, which gives the log a new id and so a new origin.

The checkpoints of one folder sign the logs of a database. The signer of another folder signs
nothing. It only compares the logs with its own checkpoints, because they may prove that a backup
was restored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

import structlog

from foldlog.domain import merkle
from foldlog.domain.errors import (
    FoldlogError,
    LogIncomplete,
    NoCheckpoint,
    NotFound,
    Unavailable,
)
from foldlog.domain.notes import Checkpoint, InvalidNote, Note, origin_of
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS
from foldlog.infrastructure.postgres.log.alarms import incomplete
from foldlog.infrastructure.postgres.proofs.tree import Heads, PostgresProofTree

from .folders import FolderUnusable, identify_folder
from .keys import KeyRing, KeysUnusable, read_keys
from .last_signed import (
    FolderBehind,
    LastCheckpointUnusable,
    LastSigned,
    SigningStopped,
    check_signed,
    claimed_size,
    open_last,
)

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

#: A function that receives each published checkpoint: the space, the id of the log, the note.
OnSigned = Callable[[str, str, Note], None]
#: Signs or compares a space, with the keys and the id of the folder. Returns whether it has signed.
Look = Callable[[str, KeyRing, str], bool]


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
        self._public = ""  #: the public key that signed all published checkpoints
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
        left out until `RETRY_SECONDS` have passed since the failure. If another folder signs for
        this database, the spaces are only compared with the checkpoints of this folder.
        """
        keys = read_keys(self._keys)  # each time, because an operator may rotate them
        if keys.signer("") is None:
            return 0
        public = keys.log[-1].public
        began = time.monotonic()
        found = self._tree.to_sign()
        now = time.monotonic()
        due = set(found)
        if self._may_be_restored or public != self._public:
            # A restored log looks completely signed until it grows again. A quiet one would keep
            # the signature of an old key.
            due |= self._to_sign_again(keys)
            self._may_be_restored, self._public = False, public
        wanted = PAUSE_PER_SEARCH * (now - began)
        self._pause = min(max(PAUSE_SECONDS, wanted), PAUSE_SECONDS_MAX)
        ready = sorted(space for space in due if self._retry_at.get(space, now) <= now)
        try:
            folder = identify_folder(self._last.folder)  # each time, because of takeovers
        except FolderUnusable as exc:
            for space in ready:
                self._stop(space, None, exc)
            return 0
        signs = self._tree.signers.may_sign(
            folder.folder,
            [key.public for key in keys.log],
            taken_over_by=folder.taken_over_by,
            agrees=self._agrees,
        )
        look = self.sign if signs else self.compare
        return sum(self._look_or_stop(look, space, keys, folder.folder) for space in ready)

    def _to_sign_again(self, keys: KeyRing) -> set[str]:
        """Returns the set of spaces whose published checkpoint must be replaced.

        For these spaces, the checkpoint has no signature of the current key, or another tree size
        than the last signed checkpoint in the file. The sizes differ if an old backup of the
        database was restored. They also differ if the service crashed after it saved a checkpoint
        and before it published the checkpoint.
        """
        found = set()
        for space, of_log, shown in self._tree.published():
            note = self._last.read(space, of_log)
            # Signing checks the file itself; here only its size is compared.
            is_restored = note is not None and claimed_size(note) != claimed_size(shown)
            if is_restored or not _has_current_signature(shown, keys):
                found.add(space)
        return found

    def _agrees(self) -> bool:
        """Tells whether this folder may be the one that has signed the logs of the database so far.

        The signer saves each checkpoint before it publishes the checkpoint. So no published one is
        later than the one of the folder, and at least one is in the folder. Logs that the folder
        lacks are alarms of their own.
        """
        published = self._tree.published()
        known = [
            (claimed_size(note) or 0, claimed_size(shown) or 0)
            for space, of_log, shown in published
            if (note := self._last.read(space, of_log)) is not None
        ]
        return not published or (bool(known) and all(own >= shown for own, shown in known))

    def _look_or_stop(self, look: Look, space: str, keys: KeyRing, folder: str) -> bool:
        """Signs or compares one space, and returns whether a checkpoint was published.

        If this fails, the method returns `False`, so that the caller can continue with the other
        spaces. It then also raises an alarm for this space, unless the tree of the space is
        missing.
        """
        try:
            signed = look(space, keys, folder)
            self._retry_at.pop(space, None)
            return signed
        except NotFound as exc:
            # A rebuild has just removed the tree, or the space was deleted.
            log.warning("signing_waits_for_the_tree", space=space, why=str(exc))
            return False
        except (SigningStopped, LogIncomplete, merkle.InvalidProof, OSError) as exc:
            self._stop(space, folder, exc)
            return False

    def _stop(self, space: str, folder: str | None, exc: Exception) -> None:
        code = exc.code if isinstance(exc, FoldlogError) else SigningStopped.code
        self._retry_at[space] = time.monotonic() + RETRY_SECONDS
        log.error("signing_stopped", space=space, code=code, why=str(exc))
        self._tree.alarm(space, code, str(exc), folder)

    def sign(self, space: str, keys: KeyRing, folder: str) -> bool:
        """Signs a checkpoint of a space's current tree, publishes it, and returns `True`.

        Returns `False`, without signing, if another process is signing this space at the moment, if
        another folder has taken over, or while the alarm of another folder stands. Also returns
        `False` if the tree is behind: it lacks events that are in the log and were already signed.

        Raises `LogShrunk` if the log has fewer events than were signed. Raises `LogForked` if
        signed events have changed, and `LogIncomplete` if events are missing. Raises
        `LastCheckpointUnusable` if the file of the last checkpoint is unreadable or invalid, and
        `FolderBehind` if it is older than the published checkpoint.
        """
        with self._tree.signing(space, folder) as is_ours:
            if not is_ours:
                return False
            heads = self._tree.heads(space)
            if _is_of_another(heads, folder):
                return False
            last = self._last.open(space, heads.log, keys)
            size = 0 if last is None else last[0].size
            if size <= heads.head and size < heads.published:
                self._check_memory(space, heads, size, keys)
            if heads.head >= size > heads.size:
                return False  # the projector still has to extend the tree
            root = self._check(space, heads, last)
            self._check_whole(space, heads, size)
            checkpoint = Checkpoint(origin_of(self._origin, space, heads.log), heads.size, root)
            note = _next(checkpoint, last, keys)
            if last is None or note.encoded != last[1].encoded:
                self._last.write(space, heads.log, note.encoded)
            self._tree.publish(space, heads.log, checkpoint.size, note.encoded)
            if heads.alarm is not None:
                self._tree.end_alarm(space, folder)
        if self._on_signed is not None:
            self._on_signed(space, heads.log, note)
        return True

    def _check_memory(self, space: str, heads: Heads, size: int, keys: KeyRing) -> None:
        """Raises `FolderBehind` if our key has signed the published checkpoint.

        The signer saves each checkpoint before it publishes the checkpoint, so a complete folder
        is never behind. The checkpoint of a lost key stays published until the next one is signed.
        """
        with suppress(LastCheckpointUnusable, NoCheckpoint):
            note = self._tree.checkpoint(space)
            open_last(note, space, heads.log, keys, "the published checkpoint")
            raise FolderBehind(
                f"{space!r} has a checkpoint of {heads.published} events, but the last one in the "
                f"folder of this signer has {size}. Is the folder a copy, or an older backup? Run "
                "foldlog keys takeover"
            )

    def compare(self, space: str, keys: KeyRing, folder: str) -> bool:
        """Compares a log that another folder signs with the checkpoints of this folder.

        Signs nothing, and returns `False`. If this folder has raised an alarm, it ends when the log
        contains the events that were signed here. Raises the errors of `sign`.
        """
        heads = self._tree.heads(space)
        last = self._last.open(space, heads.log, keys)
        if last is None or heads.head >= last[0].size > heads.size or _is_of_another(heads, folder):
            return False
        self._check(space, heads, last)
        if heads.alarm is not None:
            self._tree.end_alarm(space, folder)
        return False

    def _check(self, space: str, heads: Heads, last: tuple[Checkpoint, Note] | None) -> bytes:
        """Returns the root of the tree, which begins with the events of the last checkpoint."""
        nothing = Checkpoint("", 0, merkle.EMPTY_ROOT)
        return check_signed(self._tree, space, heads, nothing if last is None else last[0])

    def _check_whole(self, space: str, heads: Heads, signed: int) -> None:
        """Counts the events that a checkpoint is about to sign, and some that were signed before.

        Raises `LogIncomplete` if events are missing in the log.
        """
        if heads.incomplete is not None:
            raise incomplete(space, heads.incomplete)
        after = min(signed, max(0, heads.size - COUNTED_EVENTS))
        self._tree.check_whole(space, after=after, size=heads.size)


def _is_of_another(heads: Heads, folder: str) -> bool:
    """Tells whether another folder has raised the alarm of a space."""
    return heads.alarm is not None and heads.alarm_by not in (None, folder)


def _has_current_signature(note: bytes, keys: KeyRing) -> bool:
    """Returns whether a checkpoint names a signature of the current key. The signature itself is
    left unchecked."""
    try:
        current, *_ = keys.verifiers(Checkpoint.of(note).origin)
        return any(signature.is_of(current) for signature in Note.parse(note).signatures)
    except InvalidNote:
        return False


def _next(checkpoint: Checkpoint, last: tuple[Checkpoint, Note] | None, keys: KeyRing) -> Note:
    """Signs the next checkpoint. Returns the note of the last one if both are equal, and the
    current key has signed the last one."""
    if last is not None and last[0] == checkpoint and _has_current_signature(last[1].encoded, keys):
        return last[1]
    signer = keys.signer(checkpoint.origin)
    assert signer is not None, "sign_all has checked it"
    return Note(checkpoint.text, [signer.sign(checkpoint.text)])
