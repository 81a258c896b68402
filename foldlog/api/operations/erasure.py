"""The operation that erases records, for an admin."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.operation import operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.admin_bodies import erase_body
from foldlog.api.shapes.answers import ErasedRecord, ErasureAnswer
from foldlog.domain.access import Caller, Right
from foldlog.domain.erasure import Selection
from foldlog.domain.errors import LimitExceeded, UnknownRecord, UnknownSpace
from foldlog.domain.limits import Limits
from foldlog.domain.names import check_reason
from foldlog.domain.ports import EventStore

from .problems import WRITE_PROBLEMS


def erasure_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("erasure", __name__)

    @bp.post("/v1/admin/spaces/<space>/erase")
    @operation(
        Right.ADMIN,
        body=JsonBody(erase_body(limits), limits),
        body_example=examples.ERASE,
        answer=ErasureAnswer,
        example=examples.ERASURE_ANSWER,
        problems=(*WRITE_PROBLEMS, LimitExceeded, UnknownSpace, UnknownRecord),
    )
    def erase(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Erase records.

        Their values leave the log, the master table, the conflict ledger, and each device when it
        pulls. Every proof stays valid. The service erases the `records` that the request names, and
        every record of `collection` with an operation in the log that has all the values of
        `where`. A repeated request reports the erased records again. The duration grows with the
        length of the log.
        """
        check_reason(body["reason"], body.get("by"))
        wanted = Selection(
            keys=tuple((named["collection"], named["id"]) for named in body["records"]),
            collection=body.get("collection"),
            where=body["where"],
        )
        found = store.find_erasable(space, wanted)
        if len(found) > limits.erase_records_max:
            raise LimitExceeded("erase_records_max", limits.erase_records_max)
        records = [ErasedRecord(one.collection, one.id, one.events) for one in found]
        if not body["dry_run"] and found:
            keys = [one.key for one in found]
            erased = store.erase(
                space,
                keys,
                reason=body["reason"],
                by=caller.attribution(body.get("by")),
                tidies=True,
            )
            records = [ErasedRecord(one.collection, one.id, one.events, one.seq) for one in erased]
        return json_reply(ErasureAnswer(body["dry_run"], records))

    return bp
