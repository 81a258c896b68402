"""Defines the decorator `operation`. It declares an operation of the API: the right that its
callers need, its request, its response and its problems (error responses).

    @blueprint.get("/v1/spaces/<space>/events")
    @operation(Right.READ, query=events_query(limits), answer=RangeSchema, example=...)
    async def events(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        '''First line: the summary. The rest: the description.'''

The path, the query and the body are checked with schemas before the view function is called. The
OpenAPI document is generated from the same schemas, so the document always agrees with the checks.
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

#: A coroutine runs on the event loop and takes the `request` too; a function runs in a thread.
View = Callable[..., Reply] | Callable[..., Awaitable[Reply]]
NO_PARAMETERS = Parameters()


@dataclass(frozen=True)
class Lines:
    """Describes a response that consists of lines, each of which is a JSON document.

    `kinds` is a dict from the name of each kind of line to a pair: the struct of the line, and an
    example of the line.
    """

    about: str
    kinds: Mapping[str, tuple[type, Any]]


class Operation:
    """An operation of the API: a view function, with the schemas that check its requests and
    describe them in the OpenAPI document."""

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
        """Checks that the caller has the right to the operation, and reads and checks the request.
        Then calls the view function and returns its `Reply`.

        Raises `InvalidRequest` if the path, the query or the body is wrong. Raises the errors of
        `Access.admit` if the caller lacks access. Errors of the view function are raised unchanged.
        """
        read_path(path)
        space = path.get("space", EVERY_SPACE)

        async def admit(**conditions: Any) -> None:
            request.caller = await access.admit(request, space, self.right, **conditions)

        request.readmit = admit
        await admit(from_cache=self._from_cache)
        request.rates.check_caller(request.subject)
        arguments: dict[str, Any] = dict(path)
        query = read_query(self.query, request.query_string)
        if self.query.fields:
            arguments["query"] = query
        if self.body is not None:
            arguments["body"] = await self.body.read(request)
            # A slow body takes long enough for the token to be revoked meanwhile.
            await request.readmit(from_cache=self._from_cache)
        if self._asks_for_caller:
            arguments["caller"] = request.caller
        if self._is_coroutine:
            return await self.view(request=request, **arguments)  # type: ignore[no-any-return,misc]
        return await self._run_of(request)(partial(self.view, **arguments))

    def _run_of(self, request: Request) -> Callable[..., Awaitable[Reply]]:
        """Returns the method of `request` that runs the view function in a thread: `look_up` for
        public operations, `run_change` for operations that write, and `run` for all others."""
        if self.right is Right.PUBLIC:
            return request.look_up  # readiness is answered even while all reading threads are busy
        if self.right in (Right.ADMIN, Right.WRITE):
            return request.run_change
        return request.run


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
    """Returns a decorator that turns a view function into an `Operation`. Callers need `right` to
    use the operation.

    Pass `from_cache=True` only if the view answers from the newest events of the log, which are in
    memory. The access check then accepts a cached caller for longer. This is safe, because a
    revocation adds an event to the log, and the cached caller becomes invalid when the log changes.
    """

    # `Any`, because Flask's types accept only views that return Flask's own responses.
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
