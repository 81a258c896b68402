"""One operation of the API: what it takes, answers and refuses, said once.

    @blueprint.get("/v1/spaces/<space>/events")
    @operation(Right.READ, query=events_query(limits), answer=RangeSchema, example=...)
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

from foldlog.api.http.access import Access
from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import Request
from foldlog.api.shapes.reading import Parameters, read_path, read_query
from foldlog.domain.access import EVERY_SPACE, Right
from foldlog.domain.errors import FoldlogError

#: A coroutine takes the `request` too; whoever needs no more than a database is a function.
View = Callable[..., Reply] | Callable[..., Awaitable[Reply]]
NO_PARAMETERS = Parameters()


@dataclass(frozen=True)
class Lines:
    """An answer of JSON lines, and what a line may be: {its name: (schema, example)}."""

    about: str
    kinds: Mapping[str, tuple[type, Any]]


class Operation:
    """A view that reads what it documents."""

    def __init__(
        self,
        view: View,
        right: Right,
        *,
        answer: type | Lines | None,
        example: Any,
        query: Parameters,
        body: JsonBody | None,
        body_example: Any,
        problems: tuple[type[FoldlogError], ...],
        media_type: str,
        from_cache: bool,
    ):
        self.__name__ = view.__name__
        self.view = view
        self.right = right
        self._is_coroutine = inspect.iscoroutinefunction(view)
        self._asks_for_caller = "caller" in inspect.signature(view).parameters
        self.summary, _, self.description = inspect.cleandoc(view.__doc__ or "").partition("\n\n")
        self.answer = answer
        self.example = example
        self.query = query
        self.body = body
        self.body_example = body_example
        self.problems = problems
        self.media_type = media_type
        self._from_cache = from_cache

    async def __call__(self, request: Request, path: Mapping[str, str], access: Access) -> Reply:
        """Raises what the view raises, and before it `InvalidRequest` and what `access` raises."""
        read_path(path)
        space = path.get("space", EVERY_SPACE)

        async def admit(**conditions: Any) -> None:
            request.caller = await access.admit(request, space, self.right, **conditions)

        request.readmit = admit
        await admit(from_cache=self._from_cache)
        request.rates.check_caller(request)
        arguments: dict[str, Any] = dict(path)
        query = read_query(self.query, request.query_string)
        if self.query.fields:
            arguments["query"] = query
        if self.body is not None:
            arguments["body"] = await self.body.read(request)
            # A body may come so slowly that its token was revoked meanwhile.
            await request.readmit(from_cache=self._from_cache)
        if self._asks_for_caller:
            arguments["caller"] = request.caller
        if self._is_coroutine:
            return await self.view(request=request, **arguments)  # type: ignore[no-any-return,misc]
        return await request.run(partial(self.view, **arguments))  # type: ignore[arg-type]


def operation(
    right: Right,
    *,
    answer: type | Lines | None = None,
    example: Any = None,
    query: Parameters = NO_PARAMETERS,
    body: JsonBody | None = None,
    body_example: Any = None,
    problems: tuple[type[FoldlogError], ...] = (),
    media_type: str = "application/json",
    from_cache: bool = False,
) -> Callable[[View], Any]:
    """`right` is what the caller needs; `at_hand`, that the answer comes of the log's end alone, as
    this process knows it."""

    # `Any`, because Flask's types know no view but one that answers in Flask's own way.
    def decorate(view: View) -> Any:
        return Operation(
            view,
            right,
            answer=answer,
            example=example,
            query=query,
            body=body,
            body_example=body_example,
            problems=problems,
            media_type=media_type,
            from_cache=from_cache,
        )

    return decorate
