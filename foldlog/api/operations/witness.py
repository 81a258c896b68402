"""The operation of a witness, which cosigns checkpoints of other logs: C2SP tlog-witness."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint

from foldlog.api.http.bodies import pieces_of
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.domain.access import Right
from foldlog.domain.errors import LimitExceeded, StorageUnavailable
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
    """`add_checkpoint` returns the line of a cosignature, or raises."""
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
        ),
    )
    async def add_checkpoint_of_a_log(request: Request) -> Reply:
        """Request a cosignature (C2SP tlog-witness).

        The body is text: `old N`, the lines of a consistency proof from there, an empty line, and
        the signed checkpoint. The response is the line of a cosignature; or a 409 of the type
        `text/x.tlog.size` with the size of the last checkpoint that was cosigned.
        """
        body = bytearray()
        async for piece in pieces_of(request, NOTE_BYTES_MAX):
            body += piece
        try:
            line = await request.run(add_checkpoint, bytes(body))
        except OtherSize as exc:
            return Reply(b"%d\n" % exc.size, SIZE, 409)
        return Reply(line.encode(), TEXT)

    return bp
