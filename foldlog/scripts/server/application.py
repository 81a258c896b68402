"""Builds the service as an ASGI application. The module connects the HTTP interface to PostgreSQL
and to the other parts of the service, according to the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foldlog.api.app import create_app
from foldlog.api.http.access import Access, OpenAccess, TokenAccess
from foldlog.api.http.rates import LimitedRates
from foldlog.api.http.resources import Resources
from foldlog.api.http.threads import ADMISSION_THREADS
from foldlog.api.server import AsgiServer
from foldlog.infrastructure.postgres.append.group_commit import COMMITTERS
from foldlog.infrastructure.settings import Settings
from foldlog.infrastructure.wiring import REQUEST_SECONDS_MAX, Services, services


@contextmanager
def application(url: str, settings: Settings) -> Iterator[AsgiServer]:
    """Returns a context manager that opens the service as an ASGI application, and closes it on
    exit. Use it to serve Foldlog, or to mount Foldlog in another ASGI application.

    `url` is the URL of a database whose schema is up to date. Keep the context manager open as long
    as the application is used. Use the application on one event loop only. The ASGI server must
    provide `raw_path`, as uvicorn and hypercorn do.
    """
    with (
        services(url, settings, seconds_max=REQUEST_SECONDS_MAX) as parts,
        Resources(_readers(settings), settings.limits) as resources,
    ):
        parts.follower.start()
        app = create_app(
            store=parts.store,
            master=parts.master,
            ready=parts.ready,
            alarms=parts.alarms,
            gauges=parts.gauges,
            access=_access(parts, settings),
            registry=parts.registry,
            tree=parts.tree,
            verifiers=parts.verifiers,
            add_checkpoint=parts.add_checkpoint,
            cors_origins=settings.cors_origins,
            limits=settings.limits,
            rates=LimitedRates(settings.limits),
            trusted_proxies=settings.trusted_proxies,
        )
        yield AsgiServer(app, resources)


def _readers(settings: Settings) -> int:
    """Returns the number of threads for reading. Each of them uses one database connection of the
    pool.

    The other connections of the pool are for the committers, for access checks, for reading new
    events, and for notifying other processes about new events.
    """
    return max(2, settings.pool_size_max - COMMITTERS - ADMISSION_THREADS - 2)


def _access(parts: Services, settings: Settings) -> Access:
    if settings.access == "open":
        return OpenAccess(settings.admin_token)
    return TokenAccess(
        parts.registry, parts.store, admin_token=settings.admin_token, jwts=parts.jwts
    )
