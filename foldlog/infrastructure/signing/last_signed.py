"""Stores the last signed checkpoint of each log outside of the database, and compares logs with it.

These files are the memory of a signer: they stay when a backup of the database is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foldlog.domain import merkle
from foldlog.domain.errors import OperatorError
from foldlog.domain.names import is_space, is_uuid
from foldlog.domain.notes import Checkpoint, InvalidNote, Note, open_checkpoint
from foldlog.domain.ports import SpaceId
from foldlog.infrastructure.files import make_folder, sync_folder, write_new
from foldlog.infrastructure.postgres.proofs.tree import Heads, PostgresProofTree

from .keys import KeyRing

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


class FolderBehind(SigningStopped):
    """The database has a later checkpoint of the log than the folder of this signer.

    The folder is a copy, or was restored from an older backup, so it may lack checkpoints that were
    signed.
    """

    code = "folder-behind"


class LastSigned:
    """Stores the last signed checkpoint of each log, in one file for each log.

    These files are outside of the database, so they stay when a backup of the database is restored.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, space: str, log: str) -> Path:
        return self.folder / space / log

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yields the pair (space, log id) for each file of the folder."""
        for path in sorted(self.folder.glob("*/*")):
            if is_space(path.parent.name) and is_uuid(path.name):
                yield path.parent.name, path.name

    def read(self, space: str, log: str) -> bytes | None:
        """Returns the last signed checkpoint of a log, or `None` if none was signed yet."""
        try:
            return self.path(space, log).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, space: str, log: str, note: bytes) -> None:
        """Saves the last signed checkpoint of a log, and flushes it to the disk."""
        path = self.path(space, log)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, path.parent):
            if not folder.exists():
                make_folder(folder)
                sync_folder(folder.parent)
        write_new(path, note.decode(), MODE)

    def open(self, space: str, log: str, keys: KeyRing) -> tuple[Checkpoint, Note] | None:
        """Reads the last signed checkpoint of a log, and verifies it.

        Returns a pair: the checkpoint, and the signed note that contains its text. Returns `None`
        if the log has no signed checkpoint yet. Raises `LastCheckpointUnusable` if the file is
        invalid, if its signature is invalid, or if it belongs to another log.
        """
        encoded = self.read(space, log)
        if encoded is None:
            return None
        return open_last(encoded, space, log, keys, str(self.path(space, log)))


def open_last(
    encoded: bytes, space: str, log: str, keys: KeyRing, where: str
) -> tuple[Checkpoint, Note]:
    """Decodes and verifies a signed checkpoint of a log. `where` names its place in errors.

    Returns a pair: the checkpoint, and the signed note that contains its text. Raises
    `LastCheckpointUnusable` if the checkpoint is invalid, if none of our keys has signed it, or if
    it belongs to another log.
    """
    try:
        checkpoint = Checkpoint.of(encoded)
        # Only the log and our key must match, because the service may have been renamed since.
        found, note = open_checkpoint(encoded, keys.verifiers(checkpoint.origin))
    except InvalidNote as exc:
        raise LastCheckpointUnusable(f"{where}: {exc}") from exc
    if not found.origin.endswith(f"/spaces/{space}/{log}"):
        raise LastCheckpointUnusable(f"{where} is of another log: {found.origin}")
    return found, note


def claimed_size(note: bytes) -> int | None:
    """Returns the tree size that a signed note contains. The signature is left unchecked.

    Returns `None` if the note is invalid.
    """
    try:
        return Checkpoint.of(note).size
    except InvalidNote:
        return None


def check_signed(
    tree: PostgresProofTree, space: SpaceId, heads: Heads, signed: Checkpoint
) -> bytes:
    """Returns the root of the log's tree, which begins with the events of a signed checkpoint.

    The tree must contain at least as many events as the checkpoint, unless the log is shorter.
    Raises `LogShrunk` if the log has fewer events than were signed, and `LogForked` if signed
    events have changed.
    """
    if signed.size > heads.head:
        raise LogShrunk(
            f"{space!r} has {heads.head} events; {signed.size} were signed. Was an older backup "
            "restored?"
        )
    proof = tree.consistency(space, signed.size, heads.size)
    try:
        merkle.check_consistency(
            signed.size, signed.root, heads.size, proof.new_root, list(proof.path)
        )
    except merkle.InvalidProof as exc:
        raise LogForked(
            f"{space!r} does not begin with the {signed.size} events that were signed: {exc}"
        ) from exc
    return proof.new_root
