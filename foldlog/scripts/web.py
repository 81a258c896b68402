"""What gunicorn serves: the app on the services of this process."""

from __future__ import annotations

import atexit
from contextlib import ExitStack

from flask import Flask

from ..api.app import create_app
from ..api.logging import configure_logging
from ..infrastructure.settings import InvalidSettings, read_settings
from ..infrastructure.wiring import services


def create() -> Flask:
    """The app of one worker. The database is the one of `FOLDLOG_DATABASE_URL`."""
    settings = read_settings()
    configure_logging(settings.log_format)
    if settings.database_url is None:
        raise InvalidSettings("a web worker needs FOLDLOG_DATABASE_URL; `foldlog serve` sets it")
    stack = ExitStack()
    parts = stack.enter_context(services(settings.database_url, settings))
    atexit.register(stack.close)
    return create_app(
        store=parts.store, master=parts.master, ready=parts.ready, gauges=parts.gauges
    )
