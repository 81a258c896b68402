"""One structured line for each request, with an id that the answer carries too.

No line holds a value of a changeset, a record's id, or a token: only what an operator needs.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog
from structlog.tracebacks import ExceptionDictTransformer

from foldlog.domain.redaction import redacted

from .requests import Request

log = structlog.get_logger("foldlog.api")


def configure_logging(format: Literal["json", "console"] = "json", level: str = "INFO") -> None:
    """Makes structlog, and what other libraries log, write lines of one form to stderr.

    Called once by whoever starts a process; this package configures nothing at import.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # A traceback never shows local variables: they hold what users wrote.
    rendering: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
        if format == "json"
        else [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    rendering.append(_without_secrets)  # whoever wrote the message, and whatever it quotes
    # Ours go straight to stderr: by way of `logging` a line costs a tenth of a request.
    structlog.configure(
        processors=[_add_logger_name, *shared, *rendering],
        logger_factory=_Stderr,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


class _Stderr:
    """A logger that knows its name, which `get_logger` is given.

    What is no trouble may wait a moment to be written, many lines at once: a system call for each
    request costs a tenth of it. Trouble is written at once, with all that was before it.
    """

    def __init__(self, name: str = "foldlog"):
        self.name = name

    def debug(self, line: str) -> None:
        _lines.append(line)

    def error(self, line: str) -> None:
        _lines.append(line)
        _lines.flush()

    info = msg = debug
    warning = warn = critical = fatal = exception = failure = err = error


class _Lines:
    """Lines on their way to stderr; without a pause, each is written at once."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._writing = threading.Lock()
        self._is_filled = threading.Event()
        self.pause_seconds = 0.0

    def append(self, line: str) -> None:
        self._lines.append(line)
        if not self.pause_seconds:
            self.flush()
        elif not self._is_filled.is_set():
            self._is_filled.set()

    def flush(self) -> None:
        with self._writing:
            # One by one, because others append meanwhile.
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()

    def write_now_and_then(self, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        threading.Thread(target=self._run, name="foldlog-log", daemon=True).start()
        atexit.register(self.flush)

    def _run(self) -> None:
        while True:
            self._is_filled.wait()
            time.sleep(self.pause_seconds)
            self._is_filled.clear()
            self.flush()


_lines = _Lines()


def write_logs_behind(pause_seconds: float = 0.1) -> None:
    """From now on this process writes its log in the background; called by a web worker."""
    _lines.write_now_and_then(pause_seconds)


def _add_logger_name(
    logger: Any, _: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event["logger"] = logger.name
    return event


def _without_secrets(_: Any, __: str, line: Any) -> str:
    return redacted(line)


def _json(value: Any, default: Callable[[Any], Any]) -> str:
    return msgspec.json.encode(value, enc_hook=default).decode()


def path_template(rule: str) -> str:
    """`/v1/spaces/<space>/events` as OpenAPI writes it: `/v1/spaces/{space}/events`."""
    return re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule)


def log_request(
    request: Request,
    *,
    path: str | None,
    space: str | None,
    status: int,
    bytes_out: int | None,
) -> None:
    """`path` is the template, not what was asked for: that may name a person's record.

    `bytes_out` is `None` for a stream. Who calls is named by id, if that was found.
    """
    caller = {"caller": request.caller.id} if request.caller and request.caller.id else {}
    log.info(
        "request",
        method=request.method,
        path=path,
        space=space,
        status=status,
        problem=request.problem,
        duration_ms=round((time.perf_counter() - request.started) * 1000, 1),
        bytes_in=request.bytes_in,
        bytes_out=bytes_out,
        **caller,
    )
