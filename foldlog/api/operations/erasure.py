"""Defines the operation with which an admin erases the values of records."""

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
        """Erase the values of records permanently.

        The service removes the values from the log, the master table and the conflict ledger. Each
        device removes them at its next pull. All proofs stay valid.

        The request names records in `records`, or selects records by their values with `collection`
        and `where`, or does both. `where` maps fields to values: a record is selected if the log
        has a single operation on this record that contains all values of `where`. If you repeat the
        request, the response lists the erased records again. The longer the log, the longer the
        request takes.
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
