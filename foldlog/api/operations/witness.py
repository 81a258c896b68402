"""Defines the operation with which Foldlog acts as a witness: it cosigns the checkpoints of other
logs (C2SP tlog-witness)."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint

from foldlog.api.http.bodies import pieces_of
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.domain.access import Right
from foldlog.domain.errors import AnotherFolder, LimitExceeded, StorageUnavailable
from foldlog.domain.notes import NOTE_BYTES_MAX
from foldlog.domain.witness import (
    InconsistentCheckpoint,
    OtherSize,
    UnknownLog,
    UntrustedCheckpoint,
)

TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"


def witness_blueprint(add_checkpoint: Callable[[bytes], str]) -> Blueprint:
    """Creates the blueprint with the operation of a witness.

    `add_checkpoint` is a function that takes the body of a request. It returns the line of a
    cosignature, or raises the error with which the service responds.
    """
    bp = Blueprint("witness", __name__)

    @bp.post("/v1/witness/add-checkpoint")
    @operation(
        Right.PUBLIC,
        media_type=TEXT,
        problems=(
            LimitExceeded,
            UnknownLog,
            UntrustedCheckpoint,
            InconsistentCheckpoint,
            StorageUnavailable,
            AnotherFolder,
        ),
    )
    async def add_checkpoint_of_a_log(request: Request) -> Reply:
        """Request a cosignature for a checkpoint (C2SP tlog-witness).

        The body is text: a line `old N`, where N is the size of an older tree; the lines of a
        consistency proof from that size; an empty line; and the signed checkpoint. The response is
        the line of a cosignature.

        N must be the size of the last checkpoint of this log that the witness has cosigned. If N is
        another number, the status is 409. The status is also 409 if the new checkpoint has the same
        size as the last one, but another root hash. The body of a response with status 409 is the
        size of the last cosigned checkpoint, with the media type `text/x.tlog.size`.
        """
        body = bytearray()
        async for piece in pieces_of(request, NOTE_BYTES_MAX):
            body += piece
        try:
            line = await request.run_change(add_checkpoint, bytes(body))
        except OtherSize as exc:
            return Reply(b"%d\n" % exc.size, SIZE, 409)
        return Reply(line.encode(), TEXT)

    return bp
