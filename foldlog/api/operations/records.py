"""Defines the operations that read records, conflicts, and record ids. A device may use a key of
its own for a new record; one of the operations lists the record ids that the service made from such
keys."""

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
    AtLeast,
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
        """Read the records of the master table.

        By default, the response has the records that are not deleted, in the order of collection
        and id. With `changed_after`, it has each record that changed after that seq, in its current
        state. Such a record is listed once, even if it changed several times or was deleted. To
        read the next page, repeat the request with the `cursor` of this page. On the last page
        `cursor` is null.

        With `as_of`, the response has the records that existed at that moment, in the order of
        collection and creation. All pages show the same moment, even if records change while you
        read the pages.
        """
        read = partial(_page, master, space, query)
        page = await projected(request, space, read, _at_least(query))
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

        If the record is deleted, the response is a tombstone, in which `is_deleted` is true. The id
        is the rest of the path after the collection: percent-encode the whole id, with slashes as
        `%2F`. Browsers change paths that contain an id such as `..`. For these ids, use
        `/records?collection=...&id=...` instead.
        """
        one = partial(_one, master, space, (collection, id), query)
        page = await projected(request, space, one, _at_least(query))
        record = msgspec.Raw(page.records[0])
        return json_reply(
            answers.RecordAnswer(
                *(page.log, page.head, page.projected, record, _as_of(page)),
                halted_at=page.halted_at,
            )
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

        The ledger has every value that lost against a concurrent change, together with the value
        that won. `restore` is a changeset that sets the lost value again. To use it, add `id`,
        `counter` and `made_at` to it, and push it. `restore` is null for the number of an `add`
        that was impossible: the field contained a text or another value instead of a number, or the
        sum was too large.

        To read the next page, repeat the request with the `cursor` of this page. A page may be
        empty although more pages follow; on the last page `cursor` is null.
        """
        read = partial(_conflicts, master, space, query)
        page = await projected(request, space, read, query["at_least"])
        return json_reply(
            answers.ConflictsPage(
                *(page.log, page.head, page.projected, joined(page.conflicts), page.cursor),
                halted_at=page.halted_at,
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
        """List the record ids that the service made for a device's own keys, by collection and key.

        In a changeset, a device may give a new record a key of its own (a `local_id`) instead of an
        id. The service then makes the record's id from this key. The same key always gives the same
        record id, so a device can repeat this request at any time. To read the next page, repeat
        the request with the `cursor` of this page. On the last page `cursor` is null. The keys of
        one collection may be spread over several pages.
        """

        def local_ids(at_least: AtLeast) -> LocalIdsPage:
            return master.local_ids(
                space,
                device,
                limit=query["limit"],
                cursor=query.get("cursor"),
                at_least=at_least,
            )

        return json_reply(await projected(request, space, local_ids, query["at_least"]))

    return bp


def _at_least(query: Mapping[str, Any]) -> AtLeast:
    """A read of an earlier moment waits for this moment only, and not for the head."""
    return 0 if query["at_least"] is None and "as_of" in query else query["at_least"]


def _page(
    master: MasterTable, space: str, query: Mapping[str, Any], at_least: AtLeast
) -> RecordsPage:
    if "id" in query:
        return _one(master, space, (query["collection"], query["id"]), query, at_least)
    if "as_of" in query:
        return master.as_of(
            space,
            AsOfQuery(
                query["as_of"],
                query["limit"],
                collection=query.get("collection"),
                cursor=query.get("cursor"),
                at_least=at_least or 0,
            ),
        )
    return master.page(
        space,
        RecordsQuery(
            limit=query["limit"],
            collection=query.get("collection"),
            changed_after=query.get("changed_after"),
            cursor=query.get("cursor"),
            at_least=at_least,
        ),
    )


def _one(
    master: MasterTable, space: str, key: Key, query: Mapping[str, Any], at_least: AtLeast
) -> RecordsPage:
    if "as_of" in query:
        return master.record_as_of(space, key, query["as_of"], at_least=at_least or 0)
    return master.record(space, key, at_least=at_least)


def _conflicts(
    master: MasterTable, space: str, query: Mapping[str, Any], at_least: AtLeast
) -> ConflictsPage:
    return master.conflicts(
        space,
        limit=query["limit"],
        cursor=query.get("cursor"),
        at_least=at_least,
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
        *(page.log, page.head, page.projected, joined(page.records), page.cursor, _as_of(page)),
        halted_at=page.halted_at,
    )
