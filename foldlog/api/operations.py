"""One operation of the API: what it takes, answers and refuses, said once.

    @blueprint.get("/v1/spaces/<space>/events")
    @operation(query=events_query(limits), answer=RangeSchema, example=..., problems=(...))
    async def events(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        '''First line: the summary. The rest: the description.'''

What is documented is what is read: the view receives the path's parts, `query` and `body` already
checked by the same schemas that the OpenAPI document is made of; and both doors call the same view.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from marshmallow import Schema

from ..domain.errors import FoldlogError
from .access import Access
from .json_body import JsonBody
from .queries import Parameters, read_path, read_query
from .replies import Reply
from .requests import Request

#: A coroutine takes the `request` too; whoever needs no more than a database is a function.
View = Callable[..., Reply] | Callable[..., Awaitable[Reply]]
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
        access: Access | None,
    ):
        self.__name__ = view.__name__
        self.view = view
        self._is_coroutine = inspect.iscoroutinefunction(view)
        self.summary, _, self.description = inspect.cleandoc(view.__doc__ or "").partition("\n\n")
        self.answer = answer
        self.example = example
        self.query = query
        self.body = body
        self.body_example = body_example
        self.problems = problems
        self.media_type = media_type
        self.access = access

    async def __call__(self, request: Request, path: Mapping[str, str]) -> Reply:
        """Raises what the view raises, and `InvalidRequest`; first what `access` raises."""
        if self.access is not None:
            self.access(request)
        request.rates.check_caller(request)
        read_path(path)
        arguments: dict[str, Any] = dict(path)
        query = read_query(self.query, request.query_string)
        if self.query.fields:
            arguments["query"] = query
        if self.body is not None:
            arguments["body"] = await self.body.read(request)
        if self._is_coroutine:
            return await self.view(request=request, **arguments)  # type: ignore[no-any-return,misc]
        return await request.run(partial(self.view, **arguments))  # type: ignore[arg-type]


def operation(
    *,
    answer: type[Schema] | Schema | Lines | None = None,
    example: Any = None,
    query: Parameters = NO_PARAMETERS,
    body: JsonBody | None = None,
    body_example: Any = None,
    problems: tuple[type[FoldlogError], ...] = (),
    media_type: str = "application/json",
    access: Access | None = None,
) -> Callable[[View], Any]:
    # `Any`, because Flask's types know no view but one that answers in Flask's own way.
    def decorate(view: View) -> Any:
        return Operation(
            view,
            answer=answer,
            example=example,
            query=query,
            body=body,
            body_example=body_example,
            problems=problems,
            media_type=media_type,
            access=access,
        )

    return decorate
