"""The master table: current records, what lost, and the ids of a device's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Blueprint

from ..domain.errors import (
    FoldlogError,
    LogBehind,
    ProjectionBehind,
    StorageUnavailable,
    UnknownRecord,
    UnknownSpace,
)
from ..domain.limits import Limits
from ..domain.ports import MasterTable, RecordsPage, RecordsQuery
from . import examples
from .operations import operation
from .queries import MasterQuery, conflicts_query, records_query
from .replies import Reply, joined, json_reply
from .schemas import ConflictsPageSchema, LocalIdsSchema, RecordAnswerSchema, RecordsPageSchema

READ_PROBLEMS: tuple[type[FoldlogError], ...] = (UnknownSpace, StorageUnavailable)


class RecordsAnswer(msgspec.Struct):
    log: str
    head: int
    projected: int
    records: msgspec.Raw
    cursor: str | None


class RecordAnswer(msgspec.Struct):
    log: str
    head: int
    projected: int
    record: msgspec.Raw


class ConflictsAnswer(msgspec.Struct):
    log: str
    head: int
    projected: int
    conflicts: msgspec.Raw
    cursor: str | None


def records_blueprint(master: MasterTable, limits: Limits) -> Blueprint:
    bp = Blueprint("records", __name__)

    @bp.get("/v1/spaces/<space>/records")
    @operation(
        query=records_query(limits),
        answer=RecordsPageSchema,
        example=examples.RECORDS_PAGE,
        problems=(*READ_PROBLEMS, UnknownRecord, LogBehind, ProjectionBehind),
    )
    def records(space: str, query: Mapping[str, Any]) -> Reply:
        """Read the master table.

        The live records by collection and id; or, with `changed_after`, every record that changed
        since that seq, once, as it is now, deleted ones too. Go on with `cursor` until it is null.
        """
        return json_reply(_records_answer(_page(master, space, query)))

    @bp.get("/v1/spaces/<space>/records/<collection>/<record_id:id>")
    @operation(
        query=MasterQuery(),
        answer=RecordAnswerSchema,
        example=examples.RECORD_ANSWER,
        problems=(*READ_PROBLEMS, UnknownRecord, LogBehind, ProjectionBehind),
    )
    def record(space: str, collection: str, id: str, query: Mapping[str, Any]) -> Reply:
        """Read one record.

        A deleted one is answered as a tombstone. Everything after the collection is the id; encode
        it whole, slashes as `%2F`. For ids like `..`, which browsers take for folders, ask
        `/records?collection=...&id=...`.
        """
        page = master.record(space, (collection, id), at_least=query["at_least"])
        return json_reply(
            RecordAnswer(page.log, page.head, page.projected, msgspec.Raw(page.records[0]))
        )

    @bp.get("/v1/spaces/<space>/conflicts")
    @operation(
        query=conflicts_query(limits),
        answer=ConflictsPageSchema,
        example=examples.CONFLICTS_PAGE,
        problems=(*READ_PROBLEMS, LogBehind, ProjectionBehind),
    )
    def conflicts(space: str, query: Mapping[str, Any]) -> Reply:
        """Read the conflict ledger.

        Every value that lost against a concurrent change, with what it lost to: nothing that a
        user typed disappears without a trace.
        """
        page = master.conflicts(
            space,
            limit=query["limit"],
            cursor=query.get("cursor"),
            at_least=query["at_least"],
        )
        return json_reply(
            ConflictsAnswer(
                page.log, page.head, page.projected, joined(page.conflicts), page.cursor
            )
        )

    @bp.get("/v1/spaces/<space>/devices/<device>/ids")
    @operation(
        query=MasterQuery(),
        answer=LocalIdsSchema,
        example=examples.LOCAL_IDS,
        problems=(*READ_PROBLEMS, LogBehind, ProjectionBehind),
    )
    def device_ids(space: str, device: str, query: Mapping[str, Any]) -> Reply:
        """List the ids made from a device's own keys.

        A `local_id` always leads to the same id, so this can be asked again at any time.
        """
        return json_reply({"ids": master.local_ids(space, device, at_least=query["at_least"])})

    return bp


def _page(master: MasterTable, space: str, query: Mapping[str, Any]) -> RecordsPage:
    if "id" in query:
        key = (query["collection"], query["id"])
        return master.record(space, key, at_least=query["at_least"])
    return master.page(
        space,
        RecordsQuery(
            limit=query["limit"],
            collection=query.get("collection"),
            changed_after=query.get("changed_after"),
            cursor=query.get("cursor"),
            at_least=query["at_least"],
        ),
    )


def _records_answer(page: RecordsPage) -> RecordsAnswer:
    return RecordsAnswer(page.log, page.head, page.projected, joined(page.records), page.cursor)
