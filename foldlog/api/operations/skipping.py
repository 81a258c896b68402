"""Defines the operation with which an admin skips an event that cannot be applied to the master
table."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.operation import operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.admin_bodies import SkipBody
from foldlog.api.shapes.answers import Skipped
from foldlog.domain.access import Caller, Right
from foldlog.domain.errors import NotStopped, UnknownSpace
from foldlog.domain.limits import Limits
from foldlog.domain.ports import EventStore

from .problems import WRITE_PROBLEMS


def skipping_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("skipping", __name__)

    @bp.post("/v1/admin/spaces/<space>/skip")
    @operation(
        Right.ADMIN,
        body=JsonBody(SkipBody(), limits),
        body_example=examples.SKIP,
        answer=Skipped,
        example=examples.SKIPPED,
        problems=(*WRITE_PROBLEMS, UnknownSpace, NotStopped),
    )
    def skip(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Skip the event at which the master table is halted.

        The master table halts at an event that cannot be applied to it, for example a damaged
        event. Only this event can be skipped. The event stays in the log and in all proofs, but has
        no effect on records. A skip cannot be undone.
        """
        found = store.skip(
            space, body["seq"], reason=body["reason"], by=caller.attribution(body.get("by"))
        )
        return json_reply(Skipped(found.seq, found.by_seq))

    return bp
