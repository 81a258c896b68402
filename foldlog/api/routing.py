"""Finds the operation for the method and the path of a request.

Each path has exactly one spelling, so that the access rules of a proxy cannot read a path
differently than Foldlog. Only the ids in a path may be percent-encoded. All other segments must
match byte by byte: `//v1/...`, a trailing slash, `/v1/%73paces` and `/V1/...` get a 404.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote_to_bytes

from flask import Flask
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from foldlog.domain.errors import InvalidRequest

from .http.logging import path_template
from .http.problems import MethodNotAllowed, NoSuchPath
from .operation import Operation

SPACES = b"/v1/spaces/"
#: Operations of a space that are asked for most are found by a dictionary.
HOT = {"sync.push", "sync.sync", "events.events", "events.stream", "snapshot.snapshot"}


class Route(NamedTuple):
    """The result of matching a path: the operation, the template of the path, and the ids that the
    path contains."""

    operation: Operation
    template: str  #: of the path, as OpenAPI writes it
    path: dict[str, str]


class Router:
    """Finds the operation that handles a request. It uses the URL map of the Flask application, in
    which all routes are declared."""

    def __init__(self, app: Flask):
        self._operations = app.view_functions
        self._urls = app.url_map.bind("")
        #: by method, and by the part of the path after the space
        self._hot: dict[tuple[str, bytes], tuple[Operation, str]] = {}
        for rule in app.url_map.iter_rules():
            if rule.endpoint in HOT:
                rest = rule.rule.encode().removeprefix(SPACES + b"<space>/")
                found = self._operation(rule.endpoint), path_template(rule.rule)
                for method in rule.methods or ():
                    if method != "OPTIONS":
                        self._hot[method, rest] = found

    def find(self, method: str, path: bytes) -> Route:
        """Returns the operation for a method and a path.

        Raises `NoSuchPath` if the path is unknown. Raises `MethodNotAllowed` if the path exists,
        but only for other methods. Raises `InvalidRequest` if the path contains bytes beyond ASCII,
        or if an id in the path is invalid UTF-8 after percent-decoding.
        """
        if path.startswith(SPACES):
            space, _, rest = path[len(SPACES) :].partition(b"/")
            hot = self._hot.get((method, rest))
            if hot is not None and space:
                return Route(*hot, {"space": _decoded(space)})
        try:
            rule, found = self._urls.match(_text(path), method=method, return_rule=True)
        except WerkzeugMethodNotAllowed as exc:
            raise MethodNotAllowed(allowed=sorted(exc.valid_methods or ())) from None
        except (NotFound, RequestRedirect):
            raise NoSuchPath from None
        ids = {name: _decoded(value.encode()) for name, value in found.items()}
        return Route(self._operation(rule.endpoint), path_template(rule.rule), ids)

    def allowed_methods(self, path: bytes) -> list[str]:
        """Returns the HTTP methods that a path allows, sorted. Raises `NoSuchPath` if the path is
        unknown."""
        allowed = sorted(self._urls.allowed_methods(_text(path)))
        if not allowed:
            raise NoSuchPath
        return allowed

    def _operation(self, endpoint: str) -> Operation:
        return cast(Operation, self._operations[endpoint])


def path_of(scope: Mapping[str, Any]) -> bytes:
    """Returns the path of an ASGI request, still percent-encoded as the client sent it. If the
    application is mounted at a prefix, the prefix is removed.

    If the server does not provide `raw_path`, the function encodes the decoded path again. The
    result can then differ from the bytes that the client sent.
    """
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    mounted_at = quote(scope.get("root_path", "")).encode()
    is_below = mounted_at and path.startswith(mounted_at + b"/")
    return path[len(mounted_at) :] if is_below else path


def _text(path: bytes) -> str:
    """Converts a path from bytes to the text that Flask's URL map needs.

    Raises `NoSuchPath` if the path begins with `//`, because the URL map would ignore the second
    slash. Raises `InvalidRequest` if the path contains bytes beyond ASCII.
    """
    if path.startswith(b"//"):  # it strips slashes at the beginning
        raise NoSuchPath
    try:
        return path.decode("ascii")
    except UnicodeDecodeError as exc:
        raise InvalidRequest("percent-encode the path") from exc


def _decoded(id: bytes) -> str:
    try:
        return unquote_to_bytes(id).decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest("the path is not UTF-8") from exc
