"""The operations that read records, conflicts, and the ids of a device's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from flask import Blueprint
from msgspec import UNSET, UnsetType

from foldlog.api.http.replies import Reply, joined, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.http.waiting import ProjectedReads
from foldlog.api.operation import operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.queries import RecordQuery, conflicts_query, local_ids_query, records_query
from foldlog.domain.access import Right
from foldlog.domain.errors import UnknownRecord
from foldlog.domain.ledger import ConflictsFilter
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key
from foldlog.domain.ports import (
    AsOfPage,
    AsOfQuery,
    ConflictsPage,
    LocalIdsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
)

from .problems import HISTORY_PROBLEMS, PROJECTED_PROBLEMS


def records_blueprint(master: MasterTable, limits: Limits) -> Blueprint:
    bp = Blueprint("records", __name__)
    projected = ProjectedReads(master, limits)

    @bp.get("/v1/spaces/<space>/records")
    @operation(
        Right.READ,
        query=records_query(limits),
        answer=answers.RecordsPage,
        example=examples.RECORDS_PAGE,
        problems=(*HISTORY_PROBLEMS, UnknownRecord),
    )
    async def records(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Read the master table.

        The response has the live records by collection and id. With `changed_after` it has every
        record that changed after that seq, once, in its present state, including deleted records.
        Read the next page with `cursor` until it is null.

        With `as_of` it has the records that were live at that moment: by collection, and in the
        order in which they were created. All pages show that same moment, even if the records
        change meanwhile.
        """
        page = await projected(request, space, partial(_page, master, space, query))
        return json_reply(_records_answer(page))

    @bp.get("/v1/spaces/<space>/records/<collection>/<record_id:id>")
    @operation(
        Right.READ,
        query=RecordQuery(),
        answer=answers.RecordAnswer,
        example=examples.RECORD_ANSWER,
        problems=(*HISTORY_PROBLEMS, UnknownRecord),
    )
    async def record(
        request: Request, space: str, collection: str, id: str, query: Mapping[str, Any]
    ) -> Reply:
        """Read one record.

        A deleted record is a tombstone. Everything after the collection is the id: encode it whole,
        with slashes as `%2F`. For ids like `..`, which browsers treat as folders, use
        `/records?collection=...&id=...`.
        """
        one = partial(_one, master, space, (collection, id), query)
        page = await projected(request, space, one)
        record = msgspec.Raw(page.records[0])
        return json_reply(
            answers.RecordAnswer(page.log, page.head, page.projected, record, _as_of(page))
        )

    @bp.get("/v1/spaces/<space>/conflicts")
    @operation(
        Right.READ,
        query=conflicts_query(limits),
        answer=answers.ConflictsPage,
        example=examples.CONFLICTS_PAGE,
        problems=HISTORY_PROBLEMS,
    )
    async def conflicts(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Read the conflict ledger.

        The ledger has every value that lost against a concurrent change, and the value that won.
        `restore` is a changeset that restores the lost value: add `id`, `counter` and `made_at`,
        and push it. It is null for a number that could not be added. Read the next page with
        `cursor` until it is null; a page may be empty before the last page.
        """
        page = await projected(request, space, partial(_conflicts, master, space, query))
        return json_reply(
            answers.ConflictsPage(
                page.log, page.head, page.projected, joined(page.conflicts), page.cursor
            )
        )

    @bp.get("/v1/spaces/<space>/devices/<device>/ids")
    @operation(
        Right.READ,
        query=local_ids_query(limits),
        answer=LocalIdsPage,
        example=examples.LOCAL_IDS,
        problems=PROJECTED_PROBLEMS,
    )
    async def device_ids(
        request: Request, space: str, device: str, query: Mapping[str, Any]
    ) -> Reply:
        """List the ids that were made from a device's own keys, by collection and key.

        A `local_id` always leads to the same id, so the request can be repeated at any time. Read
        the next page with `cursor` until it is null. A collection may continue on the next page.
        """
        local_ids = partial(
            master.local_ids,
            space,
            device,
            limit=query["limit"],
            cursor=query.get("cursor"),
            at_least=query["at_least"],
        )
        return json_reply(await projected(request, space, local_ids))

    return bp


def _page(master: MasterTable, space: str, query: Mapping[str, Any]) -> RecordsPage:
    if "id" in query:
        return _one(master, space, (query["collection"], query["id"]), query)
    if "as_of" in query:
        return master.as_of(
            space,
            AsOfQuery(
                query["as_of"],
                query["limit"],
                collection=query.get("collection"),
                cursor=query.get("cursor"),
                at_least=query["at_least"],
            ),
        )
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


def _one(master: MasterTable, space: str, key: Key, query: Mapping[str, Any]) -> RecordsPage:
    if "as_of" in query:
        return master.record_as_of(space, key, query["as_of"], at_least=query["at_least"])
    return master.record(space, key, at_least=query["at_least"])


def _conflicts(master: MasterTable, space: str, query: Mapping[str, Any]) -> ConflictsPage:
    return master.conflicts(
        space,
        limit=query["limit"],
        cursor=query.get("cursor"),
        at_least=query["at_least"],
        wanted=ConflictsFilter(
            collection=query.get("collection"),
            id=query.get("id"),
            field=query.get("field"),
            device=query.get("device"),
            since=query["since"],
        ),
    )


def _as_of(page: RecordsPage) -> int | UnsetType:
    return page.as_of if isinstance(page, AsOfPage) else UNSET


def _records_answer(page: RecordsPage) -> answers.RecordsPage:
    return answers.RecordsPage(
        page.log, page.head, page.projected, joined(page.records), page.cursor, _as_of(page)
    )
