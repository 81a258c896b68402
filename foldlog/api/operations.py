"""One operation of the API: what it takes, answers and refuses, said once.

    @blueprint.get("/v1/spaces/<space>/events")
    @operation(query=events_query(limits), answer=RangeSchema, example=..., problems=(...))
    def events(space: str, query: dict[str, Any]) -> Response:
        '''First line: the summary. The rest: the description.'''

What is documented is what is read: the view receives the path's parts, `query` and `body` already
checked by the same schemas that the OpenAPI document is made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Response
from marshmallow import Schema

from ..domain.errors import FoldlogError
from .json_body import JsonBody
from .queries import Parameters, read_path, read_query

View = Callable[..., Response]
NO_PARAMETERS = Parameters()


@dataclass(frozen=True)
class Lines:
    """An answer of JSON lines, and what a line may be: {its name: (schema, example)}."""

    about: str
    kinds: Mapping[str, tuple[type[Schema], Any]]


class Operation:
    """A view that reads what it documents."""

    def __init__(
        self,
        view: View,
        *,
        answer: type[Schema] | Schema | Lines | None,
        example: Any,
        query: Parameters,
        body: JsonBody | None,
        body_example: Any,
        problems: tuple[type[FoldlogError], ...],
        media_type: str,
    ):
        self.__name__ = view.__name__
        self.view = view
        self.summary, _, self.description = inspect.cleandoc(view.__doc__ or "").partition("\n\n")
        self.answer = answer
        self.example = example
        self.query = query
        self.body = body
        self.body_example = body_example
        self.problems = problems
        self.media_type = media_type

    def __call__(self, **path: str) -> Response:
        read_path(path)
        arguments: dict[str, Any] = dict(path)
        query = read_query(self.query)
        if self.query.fields:
            arguments["query"] = query
        if self.body is not None:
            arguments["body"] = self.body.read()
        return self.view(**arguments)


def operation(
    *,
    answer: type[Schema] | Schema | Lines | None = None,
    example: Any = None,
    query: Parameters = NO_PARAMETERS,
    body: JsonBody | None = None,
    body_example: Any = None,
    problems: tuple[type[FoldlogError], ...] = (),
    media_type: str = "application/json",
) -> Callable[[View], Operation]:
    def decorate(view: View) -> Operation:
        return Operation(
            view,
            answer=answer,
            example=example,
            query=query,
            body=body,
            body_example=body_example,
            problems=problems,
            media_type=media_type,
        )

    return decorate


def json_answer(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json", headers=headers)


def joined(documents: list[bytes]) -> msgspec.Raw:
    """Stored documents as one JSON array: bytes joined, neither parsed nor made again."""
    return msgspec.Raw(b"[%b]" % b",".join(documents))
