"""Defines the operations that read the history of a record, and that compare the records of a space
at two moments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Blueprint

from foldlog.api.http.replies import Reply, joined, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.http.waiting import ProjectedReads
from foldlog.api.operation import operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.queries import diff_query, history_query
from foldlog.domain.access import Right
from foldlog.domain.errors import UnknownRecord
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key
from foldlog.domain.ports import AtLeast, DiffPage, DiffQuery, History, HistoryPage, HistoryQuery

from .problems import HISTORY_PROBLEMS


def history_blueprint(history: History, limits: Limits) -> Blueprint:
    bp = Blueprint("history", __name__)
    projected = ProjectedReads(history, limits)

    @bp.get("/v1/spaces/<space>/history/<collection>/<record_id:id>")
    @operation(
        Right.READ,
        query=history_query(limits),
        answer=answers.HistoryPage,
        example=examples.HISTORY_PAGE,
        problems=(*HISTORY_PROBLEMS, UnknownRecord),
    )
    async def record_history(
        request: Request, space: str, collection: str, id: str, query: Mapping[str, Any]
    ) -> Reply:
        """Read the history of a record.

        The response has one version of the record for each event with an operation on it, even if
        all values of the event lost against concurrent changes. A version has the device of the
        event, the changed fields with their values before and after the event, and the values that
        lost.

        Browsers change paths that contain an id such as `..`. For these ids, use
        `/history?collection=...&id=...` instead.
        """
        page = partial(_history, history, space, (collection, id), query)
        return _history_reply(await projected(request, space, page, query["at_least"]))

    @bp.get("/v1/spaces/<space>/history")
    @operation(
        Right.READ,
        query=history_query(limits, names_record=True),
        answer=answers.HistoryPage,
        example=examples.HISTORY_PAGE,
        problems=(*HISTORY_PROBLEMS, UnknownRecord),
    )
    async def history_of(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Read the history of a record that the query names.

        The response is the same as that of `/history/{collection}/{id}`. Use this operation for ids
        such as `..`, because browsers change a path that contains such an id.
        """
        key = (query["collection"], query["id"])
        page = partial(_history, history, space, key, query)
        return _history_reply(await projected(request, space, page, query["at_least"]))

    @bp.get("/v1/spaces/<space>/diff")
    @operation(
        Right.READ,
        query=diff_query(limits),
        answer=answers.DiffPage,
        example=examples.DIFF_PAGE,
        problems=HISTORY_PROBLEMS,
    )
    async def diff(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Compare the records at two moments.

        The response has every record whose state at the moment `to` differs from its state at the
        moment `from`, with both states. If a record is missing or deleted at a moment, its state
        there is null. A record that changed and later changed back is left out. To read the next
        page, repeat the request with the `cursor` of this page. A page may be empty although more
        pages follow; on the last page `cursor` is null.
        """

        def differences(at_least: AtLeast) -> DiffPage:
            wanted = DiffQuery(
                query["from_"],
                query["to"],
                query["limit"],
                collection=query.get("collection"),
                cursor=query.get("cursor"),
                at_least=at_least or 0,
            )
            return history.diff(space, wanted)

        # Without `at_least`, the read waits for its two moments only.
        page = await projected(request, space, differences, query["at_least"] or 0)
        return json_reply(
            answers.DiffPage(
                page.log,
                page.head,
                page.projected,
                page.start,
                page.to,
                joined(page.differences),
                page.cursor,
                halted_at=page.halted_at,
            )
        )

    return bp


def _history(
    history: History, space: str, key: Key, query: Mapping[str, Any], at_least: AtLeast
) -> HistoryPage:
    return history.history(
        space,
        key,
        HistoryQuery(
            query["limit"],
            order=query["order"],
            cursor=query.get("cursor"),
            at_least=at_least,
        ),
    )


def _history_reply(page: HistoryPage) -> Reply:
    return json_reply(
        answers.HistoryPage(
            *(page.log, page.head, page.projected, joined(page.versions), page.cursor),
            halted_at=page.halted_at,
        )
    )
