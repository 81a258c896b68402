"""Configures logging, and writes one structured log line for each request. The line has the request
id that the response also has.

Values of changesets, ids of records, and tokens are secret, so log lines never contain them.
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
    """Configures structlog and the standard `logging` so that both write lines of the same format
    to stderr.

    Call it once at the start of each process.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks omit local variables, because those contain users' data.
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
    rendering.append(_without_secrets)  # also of messages from other libraries
    # Our lines bypass `logging`, where each would cost a tenth of a request.
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
    """A logger that writes to stderr.

    It collects lines of the levels debug and info, and writes them together a moment later. A
    system call for each line would add a tenth to the duration of a request. A line of the level
    warning or error is written at once, after the lines collected so far.
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
    """Collects log lines and writes them to stderr every `pause_seconds`. If `pause_seconds` is 0,
    it writes each line at once."""

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
            # The number is fixed first, because other threads append meanwhile.
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()

    def write_behind(self, pause_seconds: float) -> None:
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
    """Starts a thread that writes the log lines of the levels debug and info together, every
    `pause_seconds`. Before this call, each line is written at once."""
    _lines.write_behind(pause_seconds)


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
    """Converts a Flask route such as `/v1/spaces/<space>/events` to the form that OpenAPI uses:
    `/v1/spaces/{space}/events`."""
    return re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule)


def log_request(
    request: Request,
    *,
    path: str | None,
    space: str | None,
    status: int,
    bytes_out: int | None,
) -> None:
    """Writes the log line of a request.

    `path` is the template of the path, because in the real path the id of a record may contain
    personal data. `bytes_out` is the size of the response body, or `None` if the body is sent in
    pieces. If the caller is known, the line contains the caller's id.
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
