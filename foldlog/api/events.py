"""Pulling: the events after a cursor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Blueprint, Response

from ..domain.errors import (
    LogBehind,
    LogChanged,
    StorageUnavailable,
    UnknownSpace,
)
from ..domain.limits import Limits
from ..domain.ports import EventStore, RangeQuery
from . import examples
from .operations import joined, json_answer, operation
from .queries import events_query
from .schemas import RangeSchema


class RangeAnswer(msgspec.Struct):
    log: str
    head: int
    events: msgspec.Raw
    through: int
    mark: str
    more: bool


def range_query(asked: Mapping[str, Any], device: str | None) -> RangeQuery:
    """What a pull asks for, in a query or in the body of a sync; `device` is who pulls."""
    return RangeQuery(
        after=asked["after"],
        limit=asked["limit"],
        mark=asked.get("mark"),
        collections=asked.get("collections"),
        short_for_device=None if asked.get("own") == "full" else device,
    )


def events_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("events", __name__)

    @bp.get("/v1/spaces/<space>/events")
    @operation(
        query=events_query(limits),
        answer=RangeSchema,
        example=examples.RANGE,
        problems=(UnknownSpace, LogBehind, LogChanged, StorageUnavailable),
    )
    def events(space: str, query: dict[str, Any]) -> Response:
        """Pull the events after a cursor.

        In the order of the log, without a hole. Nothing new is an empty list. While `more` is
        true, go on after `through` with its `mark`.
        """
        page = store.range_after(space, range_query(query, query.get("device")))
        return json_answer(
            RangeAnswer(
                page.log, page.head, joined(page.events), page.through, page.mark, page.more
            )
        )

    return bp
