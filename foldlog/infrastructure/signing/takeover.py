"""Makes another folder the one that signs the logs of a database, or that cosigns for others.

A takeover first compares what both folders have signed. The new folder then remembers the later
checkpoint of each log, the old folder is marked, and the database keeps a trace. The new folder
also gets a new id, so that its copies never sign.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import structlog

from foldlog.domain.errors import NotFound, OperatorError
from foldlog.domain.notes import Checkpoint
from foldlog.infrastructure.files import write_new
from foldlog.infrastructure.postgres.proofs.signers import Replacing, Signers
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree

from .folders import Folder, identify_folder, new_folder, write_folder
from .keys import KeyRing
from .last_signed import LastCheckpointUnusable, LastSigned, LogForked, check_signed, open_last
from .witness import MODE, cosigned_logs, read_last

log = structlog.get_logger("foldlog.takeover")


class TakeoverRefused(OperatorError):
    """The takeover would let a folder sign that may contradict an earlier checkpoint."""

    code = "takeover-refused"


class TakenOver(NamedTuple):
    """The result of a takeover.

    `folder` is the new id of the folder, and `before` the id of the folder that signed before, or
    `None`. `compared` is the number of checkpoints that were compared, and `not_compared` names the
    logs for which this was impossible.
    """

    folder: str
    before: str | None
    compared: int
    not_compared: list[str]


class _Folders(NamedTuple):
    """The own folder, and the other one, or `None` if the other one is lost."""

    own: Path
    other: Path | None

    def check(self, current: str | None) -> None:
        """Raises `TakeoverRefused` if the other folder is not the one that signs."""
        if self.other is None:
            return
        if not self.other.is_dir():
            raise TakeoverRefused(f"there is no folder {self.other}")
        if self.other.resolve() == self.own.resolve():
            raise TakeoverRefused(f"{self.other} is the folder of this service itself")
        own, other = identify_folder(self.own), identify_folder(self.other)
        if current not in (None, own.folder, other.folder):
            raise TakeoverRefused(
                f"the folder {current} signs for this database, but {self.other} is "
                f"{other.folder}: give the one that signs"
            )

    def swap(self, replacing: Replacing, key: str, why: str) -> Folder:
        """Marks the other folder, and gives a new id to the own one, in this order.

        After an interruption no folder signs, until the takeover is repeated.
        """
        new = new_folder()
        if self.other is not None:
            write_folder(self.other, identify_folder(self.other).taken_over(new.folder))
        write_folder(self.own, new)
        replacing.replace(new.folder, key, why)
        log.warning("signer_taken_over", folder=new.folder, before=replacing.current, why=why)
        return new


def take_over_signing(
    tree: PostgresProofTree, keys: KeyRing, *, own: Path, other: Path | None, why: str
) -> TakenOver:
    """Makes the folder `own` the one that signs the logs of a database.

    `other` is the folder that signed before, or `None` if it is lost. Each log must contain what
    `own` and `other` have signed, and the published checkpoint. `why` is stored as the reason.

    Raises `LogShrunk`, `LogForked` or `LastCheckpointUnusable` if a log contradicts a checkpoint,
    and `TakeoverRefused` if another folder than `other` signs, or if the tree of a log is behind.
    After an error nothing has changed.
    """
    folders = _Folders(own, other)
    with tree.signers.replacing() as replacing:
        folders.check(replacing.current)
        comparison = _Comparison(tree, keys, folders)
        latest = comparison.run()
        identify_folder(own)
        for (space, of_log), note in latest.items():
            comparison.own.write(space, of_log, note)
        new = folders.swap(replacing, keys.log[-1].public, why)
    return TakenOver(new.folder, replacing.current, comparison.compared, comparison.not_compared)


class _Comparison:
    """Compares the checkpoints of two folders with the logs of the database."""

    def __init__(self, tree: PostgresProofTree, keys: KeyRing, folders: _Folders):
        self._tree = tree
        self._keys = keys
        self.own = LastSigned(folders.own)
        self._all = [self.own, *([LastSigned(folders.other)] if folders.other else [])]
        self._is_lost = folders.other is None
        self.compared = 0
        self.not_compared: list[str] = []

    def run(self) -> dict[tuple[str, str], bytes]:
        """Returns the latest checkpoint of each log, by space and log id."""
        published = {(space, of_log): note for space, of_log, note in self._tree.logs()}
        logs = {log for folder in self._all for log in folder.logs()} | published.keys()
        latest = {}
        for space, of_log in sorted(logs):
            notes = self._signed(space, of_log, published.get((space, of_log)))
            if not notes:
                continue
            if (space, of_log) in published:
                self._compare(space, [checkpoint for checkpoint, _ in notes])
            else:
                self._compare_sizes(space, of_log, [checkpoint for checkpoint, _ in notes])
            latest[space, of_log] = max(notes, key=lambda note: note[0].size)[1]
        return latest

    def _signed(
        self, space: str, of_log: str, note: bytes | None
    ) -> list[tuple[Checkpoint, bytes]]:
        """Returns the verified checkpoints of a log, of the folders and of the database."""
        found = []
        for folder in self._all:
            if (encoded := folder.read(space, of_log)) is not None:
                where = str(folder.path(space, of_log))
                checkpoint, _ = open_last(encoded, space, of_log, self._keys, where)
                found.append((checkpoint, encoded))
        if note is not None:
            where = f"the published checkpoint of {space!r}"
            try:
                checkpoint, _ = open_last(note, space, of_log, self._keys, where)
                found.append((checkpoint, note))
            except LastCheckpointUnusable as exc:
                if not self._is_lost:
                    raise
                self.not_compared.append(str(exc))
        return found

    def _compare(self, space: str, checkpoints: list[Checkpoint]) -> None:
        """Checks that a log begins with the events of all its checkpoints."""
        try:
            heads = self._tree.heads(space)
        except NotFound as exc:
            raise TakeoverRefused(f"{space!r} has no tree to compare with: {exc}") from exc
        for checkpoint in set(checkpoints):
            if heads.size < checkpoint.size <= heads.head:
                raise TakeoverRefused(
                    f"the tree of {space!r} is behind: try again when the projector has caught up"
                )
            check_signed(self._tree, space, heads, checkpoint)
            self.compared += 1

    def _compare_sizes(self, space: str, of_log: str, checkpoints: list[Checkpoint]) -> None:
        """Compares the checkpoints of a log that the database lacks with each other."""
        roots: dict[int, bytes] = {}
        for checkpoint in checkpoints:
            if roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
                raise LogForked(
                    f"the folders have signed two trees of {checkpoint.size} events of {space!r}"
                )
        self.not_compared.append(f"{space}/{of_log} is not in this database")


def take_over_cosigning(
    signers: Signers, key: str, *, own: Path, other: Path | None, why: str
) -> TakenOver:
    """Makes the folder `own` the one that remembers what this witness has cosigned.

    `other` is the folder that cosigned before, or `None` if it is lost. The later checkpoint of
    each log is kept. A witness has no trees, so only checkpoints of the same size can be compared.
    Raises `TakeoverRefused` if they differ, or if another folder than `other` cosigns.
    """
    folders = _Folders(own, other)
    with signers.replacing() as replacing:
        folders.check(replacing.current)
        identify_folder(own)
        compared, not_compared = (0, []) if other is None else _keep_later(own, other)
        new = folders.swap(replacing, key, why)
    return TakenOver(new.folder, replacing.current, compared, not_compared)


def _keep_later(own: Path, other: Path) -> tuple[int, list[str]]:
    """Copies each checkpoint of a witness's other folder that is later than the own one.

    Returns the number of compared checkpoints, and the logs whose two sizes differ.
    """
    compared, not_compared, later = 0, [], []
    for path in cosigned_logs(other):
        theirs, ours = read_last(path), read_last(own / path.name)
        assert theirs is not None, "it was listed"
        if ours is None or ours.size < theirs.size:
            later.append((own / path.name, theirs))
        if ours is None:
            continue
        if ours.size != theirs.size:
            not_compared.append(
                f"{ours.origin}: {ours.size} and {theirs.size} events were cosigned"
            )
        elif ours.root != theirs.root:
            raise LogForked(
                f"two trees of {ours.size} events of {ours.origin} were cosigned: {path} and {own}"
            )
        else:
            compared += 1
    for path, checkpoint in later:
        write_new(path, checkpoint.text, MODE)
    return compared, not_compared
