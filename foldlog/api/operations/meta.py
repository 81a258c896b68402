"""Defines the operations about the service itself: its health, its limits, its metrics, and the
documents about the API."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import msgspec
from flask import Blueprint, Flask
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from foldlog.api.document.catalogue import BY_CODE, CATALOGUE, example_of
from foldlog.api.document.openapi import openapi_document
from foldlog.api.document.pages import docs_page, problem_page, register_filters
from foldlog.api.http.problems import NotReady, statuses_of, title_of
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.api.shapes.answers import Health, Readiness
from foldlog.domain.access import Right
from foldlog.domain.errors import NotFound, StorageUnavailable
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Gauge

from .metrics import CONTENT_TYPE_PLAIN_0_0_4, exposition

#: These headers forbid scripts and external resources, as a defense against injected markup.
HTML_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}
HTML = "text/html"
DOCUMENT_HEADERS = {"Cache-Control": "public, max-age=300"}


def meta_blueprint(
    app: Flask,
    ready: Callable[[], dict[str, str]],
    alarms: Callable[[], dict[str, int]],
    gauges: Callable[[], Iterable[Gauge]],
    limits: Limits,
) -> Blueprint:
    bp = Blueprint("meta", __name__)
    register_filters(bp)

    @cache
    def document() -> dict[str, Any]:
        # The first request makes it, because every blueprint is registered by then.
        return openapi_document(app)

    @cache
    def encoded_document() -> bytes:
        return msgspec.json.encode(document())

    @cache
    def page() -> bytes:
        return docs_page(
            app.jinja_env, document(), [_problem_entry(code) for code in BY_CODE]
        ).encode()

    @bp.get("/healthz")
    @operation(Right.PUBLIC, answer=Health, example={"status": "ok"})
    async def healthz(request: Request) -> Reply:
        """Report that the process is running.

        The status is 200 even if the database is broken, because a restart of the process would not
        repair the database. A supervisor can therefore restart every process that fails this check.
        Use `/readyz` to check the database too.
        """
        return json_reply(Health("ok"))

    @bp.get("/readyz")
    @operation(
        Right.PUBLIC,
        answer=Readiness,
        example={
            "status": "ready",
            "checks": {"database": "ok"},
            "alarms": {"projection-halted": 1},
        },
        problems=(NotReady,),
    )
    def readyz() -> Reply:
        """Report whether the service can handle requests.

        The service checks everything that it needs, for example the database connection. The
        response has the result of each check. An alarm is about one space, for example a halted
        projection. It needs an operator, but the service handles requests, so the status is 200.
        """
        checks = ready()
        broken = sorted(name for name, found in checks.items() if found != "ok")
        if broken:
            raise NotReady(f"not ready: {', '.join(broken)}", checks=checks)
        return json_reply(Readiness("ready", checks, alarms()))

    @bp.get("/metrics")
    @operation(Right.READ, media_type=CONTENT_TYPE_PLAIN_0_0_4, problems=(StorageUnavailable,))
    def metrics() -> Reply:
        """Read the metrics in the format of Prometheus.

        The metrics include the numbers of spaces and events, the number of events that are not yet
        in the master table, and the number of spaces whose projection has halted.
        """
        return Reply(exposition(gauges()), CONTENT_TYPE_PLAIN_0_0_4)

    @bp.get("/v1/limits")
    @operation(Right.PUBLIC, answer=Limits, example=msgspec.to_builtins(limits))
    async def get_limits(request: Request) -> Reply:
        """Read the limits of the service, such as the maximum size of a request."""
        return json_reply(limits)

    @bp.get("/openapi.json")
    @operation(Right.PUBLIC)
    async def openapi(request: Request) -> Reply:
        """Read the OpenAPI document of this service."""
        return Reply(encoded_document(), headers=dict(DOCUMENT_HEADERS), is_kept=True)

    @bp.get("/docs")
    @operation(Right.PUBLIC, media_type="text/html")
    async def docs(request: Request) -> Reply:
        """Read the OpenAPI document as an HTML page."""
        return Reply(page(), HTML, headers=DOCUMENT_HEADERS | HTML_HEADERS, is_kept=True)

    @bp.get("/problems/<code>")
    @operation(Right.PUBLIC, problems=(NotFound,))
    async def problem(request: Request, code: str) -> Reply:
        """Read the description of a problem code.

        A problem code is the `code` in an error response. The description is an HTML page if the
        `Accept` header of the request prefers `text/html`, and JSON otherwise.
        """
        if code not in BY_CODE:
            raise NotFound(f"there is no problem called {code!r}")
        about = _problem_entry(code)
        accepted = parse_accept_header(request.header("accept"), MIMEAccept)
        if accepted.best_match(["application/json", HTML]) == HTML:
            reply = Reply(
                problem_page(app.jinja_env, about).encode(), HTML, headers=dict(HTML_HEADERS)
            )
        else:
            reply = json_reply(about)
        reply.headers |= DOCUMENT_HEADERS | {"Vary": "Accept"}
        return reply

    return bp


def _problem_entry(code: str) -> dict[str, Any]:
    error = BY_CODE[code]
    return {
        "code": code,
        "title": title_of(error),
        "statuses": [status.value for status in statuses_of(error)],
        "remedy": CATALOGUE[error].remedy,
        "example": example_of(error),
    }
