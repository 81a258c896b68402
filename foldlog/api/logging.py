"""One structured line for each request, with an id that the answer carries too.

No line holds a value of a changeset, a record's id, or a token: only what an operator needs.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from typing import Literal

import structlog
from flask import Flask, Response, g, request
from structlog.tracebacks import ExceptionDictTransformer

from ..domain.names import is_space

log = structlog.get_logger("foldlog.api")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def configure_logging(format: Literal["json", "console"] = "json", level: str = "INFO") -> None:
    """Makes structlog, and what other libraries log, write lines of one form to stderr.

    Called once by whoever starts a process; this package configures nothing at import.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # A traceback never shows local variables: they hold what users wrote.
    rendering: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if format == "json"
        else [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def path_template(rule: str) -> str:
    """`/v1/spaces/<space>/events` as OpenAPI writes it: `/v1/spaces/{space}/events`."""
    return re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule)


def register_request_log(app: Flask) -> None:
    """Must come before every other hook: its end must run last, to see what is sent."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    g.started = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    space = (request.view_args or {}).get("space", "")
    log.info(
        "request",
        method=request.method,
        # The template, not the path: that one may name a person's record.
        path=path_template(request.url_rule.rule) if request.url_rule else None,
        space=space if is_space(space) else None,
        status=response.status_code,
        problem=g.get("problem"),
        duration_ms=round((time.perf_counter() - g.started) * 1000, 1),
        bytes_in=g.get("bytes_in", 0),
        bytes_out=None if response.is_streamed else response.calculate_content_length(),
    )
    return response
