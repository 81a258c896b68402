"""Implements the checks of a witness: a service that confirms that a log still contains all events
that it contained before.

The rules and bytes are those of C2SP tlog-witness. For each known log, a witness keeps the last
checkpoint that it cosigned. It cosigns a later checkpoint only if a proof shows that the new log
begins with the old one.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import NamedTuple

from .errors import Forbidden, InvalidRequest, NotFound
from .merkle import EMPTY_ROOT, HASH_BYTES, PROOF_LENGTH_MAX, InvalidProof, check_consistency
from .notes import SIZE_MAX, Checkpoint, InvalidNote, Note, Verifier

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)


class UnknownLog(NotFound):
    """The log of that origin is unknown to this witness.

    Raised if the witness has no trusted key for the origin of the checkpoint.
    """

    code = "unknown-log"


class UntrustedCheckpoint(Forbidden):
    """No key that is trusted for this origin has signed the checkpoint."""

    code = "untrusted-checkpoint"


class InconsistentCheckpoint(InvalidRequest):
    """The proof does not show that the log begins with the part that this witness saw.

    Raised if the consistency proof between the last cosigned checkpoint and the new one is wrong.
    """

    code = "inconsistent-checkpoint"


class OtherSize(Exception):
    """Raised if a request to cosign starts from another checkpoint than the one that this witness
    cosigned last. Either the size differs, or the root at the same size differs. `size` is the size
    of the checkpoint that was cosigned last."""

    def __init__(self, size: int):
        super().__init__(f"the last cosigned checkpoint has the size {size}")
        self.size = size


class AddCheckpoint(NamedTuple):
    """A request to a witness to cosign a checkpoint. `old` is the size of the checkpoint that the
    witness cosigned before, `proof` is a consistency proof, and `note` is the new checkpoint."""

    old: int
    proof: list[bytes]
    note: Note

    @property
    def encoded(self) -> bytes:
        lines = [f"old {self.old}\n", *(f"{b64encode(hash).decode()}\n" for hash in self.proof)]
        return "".join(lines).encode() + b"\n" + self.note.encoded

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Decodes the body of a request to an `AddCheckpoint`. Raises `InvalidRequest` if the body
        is invalid."""
        head, blank, note = body.partition(b"\n\n")
        first, *lines = head.decode("ascii", "replace").split("\n")
        old = _OLD.fullmatch(first)
        if not blank or old is None or int(old[1]) > SIZE_MAX or len(lines) > PROOF_LENGTH_MAX:
            raise InvalidRequest(
                "the body must be `old N`, lines of a proof, an empty line and a note"
            )
        try:
            proof = [b64decode(line, validate=True) for line in lines]
            if any(len(hash) != HASH_BYTES for hash in proof):
                raise InvalidRequest("a line of the proof must be a hash of 32 bytes in base64")
            return cls(int(old[1]), proof, Note.parse(note))
        except ValueError as exc:
            raise InvalidRequest(str(exc)) from exc


def check_signed(asked: AddCheckpoint, trusted: Sequence[Verifier]) -> Checkpoint:
    """Returns the checkpoint in a request, after checking that a key trusted for its origin has
    signed it.

    Raises `InvalidRequest` if the checkpoint is invalid, or if its size is smaller than
    `asked.old`. Raises `UnknownLog` if `trusted` has no key for the checkpoint's origin. Raises
    `UntrustedCheckpoint` if none of the keys for this origin has signed the checkpoint.
    """
    try:
        checkpoint = Checkpoint.parse(asked.note.text)
    except InvalidNote as exc:
        raise InvalidRequest(str(exc)) from exc
    of_origin = [verifier for verifier in trusted if verifier.name == checkpoint.origin]
    if not of_origin:
        raise UnknownLog(f"there is no key for {checkpoint.origin!r}")
    try:
        is_signed = bool(asked.note.verified_by(of_origin))
    except InvalidNote:
        is_signed = False
    if not is_signed:
        raise UntrustedCheckpoint
    if asked.old > checkpoint.size:
        raise InvalidRequest(f"old {asked.old} is more than {checkpoint.size}")
    return checkpoint


def check_follows(asked: AddCheckpoint, checkpoint: Checkpoint, last: Checkpoint | None) -> None:
    """Checks that a checkpoint continues the last one that this witness cosigned.

    Raises `OtherSize` if the request starts from another checkpoint than `last`: the size differs,
    or the root differs at the same size. Raises `InconsistentCheckpoint` if the consistency proof
    is wrong.
    """
    seen = Checkpoint(checkpoint.origin, 0, EMPTY_ROOT) if last is None else last
    if asked.old != seen.size:
        raise OtherSize(seen.size)
    if checkpoint.size == seen.size and checkpoint.root != seen.root:
        raise OtherSize(seen.size)
    try:
        check_consistency(seen.size, seen.root, checkpoint.size, checkpoint.root, asked.proof)
    except InvalidProof as exc:
        raise InconsistentCheckpoint(str(exc)) from exc
