"""Stepping over an event that cannot be folded, for whoever has the admin's token."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint

from ..domain.access import Caller, Right
from ..domain.errors import (
    Forbidden,
    NotStopped,
    OutcomeUnknown,
    StorageUnavailable,
    Unauthenticated,
    UnknownSpace,
)
from ..domain.limits import Limits
from ..domain.ports import EventStore
from . import examples
from .json_body import JsonBody
from .operations import operation
from .problems import UnsupportedMediaType
from .replies import Reply, json_reply
from .schemas import SkippedSchema, skip_body


class SkippedAnswer(msgspec.Struct):
    seq: int
    by_seq: int


def skipping_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("skipping", __name__)

    @bp.post("/v1/admin/spaces/<space>/skip")
    @operation(
        Right.ADMIN,
        body=JsonBody(skip_body(), limits),
        body_example=examples.SKIP,
        answer=SkippedSchema,
        example=examples.SKIPPED,
        problems=(
            *(Unauthenticated, Forbidden, UnsupportedMediaType),
            *(UnknownSpace, NotStopped, StorageUnavailable, OutcomeUnknown),
        ),
    )
    def skip(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Step over an event.

        Only the one at which the master table of the space stands still. It stays in the log and
        in every proof; what it says is folded nowhere any more. There is no way back.
        """
        found = store.skip(
            space, body["seq"], reason=body["reason"], by=caller.signs(body.get("by"))
        )
        return json_reply(SkippedAnswer(found.seq, found.by_seq))

    return bp
