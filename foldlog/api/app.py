"""Builds the Flask application that declares every route. `AsgiServer` serves this application.

Flask provides the routes, the blueprints and the templates. The OpenAPI document is generated from
the same routes. Calling the application as a WSGI application raises `TypeError`, because a WSGI
server would keep one thread busy for each waiting client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from flask import Flask
from werkzeug.routing import BaseConverter

from foldlog.api.http.access import Access
from foldlog.api.http.cors import Cors
from foldlog.api.http.rates import NO_RATES, Network, Proxies, Rates
from foldlog.api.operations.collections import collections_blueprint
from foldlog.api.operations.devices import devices_blueprint
from foldlog.api.operations.enrolment import enrolment_blueprint
from foldlog.api.operations.erasure import erasure_blueprint
from foldlog.api.operations.events import events_blueprint
from foldlog.api.operations.history import history_blueprint
from foldlog.api.operations.meta import meta_blueprint
from foldlog.api.operations.proofs import proofs_blueprint
from foldlog.api.operations.records import records_blueprint
from foldlog.api.operations.skipping import skipping_blueprint
from foldlog.api.operations.snapshot import snapshot_blueprint
from foldlog.api.operations.sync import sync_blueprint
from foldlog.api.operations.tokens import tokens_blueprint
from foldlog.api.operations.witness import witness_blueprint
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.notes import Verifier
from foldlog.domain.ports import EventStore, Gauge, MasterTable, ProofTree, Registry


class RecordIdConverter(BaseConverter):
    """Matches a record id in a URL path. The id is the whole rest of the path, so it may contain
    slashes.

    An id may begin or end with a slash, and may contain several slashes in a row. In a path,
    `a%2Fb` and `a/b` name the same record.
    """

    regex = r"[\s\S]+"
    part_isolating = False
    weight = 200


class DigitsConverter(BaseConverter):
    """Matches a path segment that consists of ASCII digits only.

    The route `tile/<digits:level>/...` uses it. With a converter that matches any text, this route
    would also match paths such as `tile/%65ntries/...`, which is another spelling of
    `tile/entries/...`.
    """

    regex = r"[0-9]+"


class FoldlogApp(Flask):
    """The Flask application that declares the routes of Foldlog. It also stores the access rules,
    the CORS rules, the rate limits and the trusted proxies, which `AsgiServer` uses for each
    request."""

    def __init__(
        self,
        *,
        access: Access,
        cors: Cors,
        rates: Rates,
        trusted_proxies: tuple[Network, ...],
    ):
        super().__init__(__name__, static_folder=None)
        self.access = access
        self.cors = cors
        self.rates = rates
        self.proxies = Proxies(trusted_proxies)
        self.url_map.merge_slashes = False
        self.url_map.converters |= {"record_id": RecordIdConverter, "digits": DigitsConverter}
        self.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}

    def wsgi_app(self, environ: Any, start_response: Any) -> NoReturn:
        """Always raises `TypeError`, because the service does not support WSGI. Serve the
        application with the ASGI server `AsgiServer` instead."""
        raise TypeError("serve foldlog by ASGI: AsgiServer(app, resources)")


def create_app(
    *,
    store: EventStore,
    master: MasterTable,
    ready: Callable[[], dict[str, str]],
    alarms: Callable[[], dict[str, int]] = dict,
    gauges: Callable[[], Iterable[Gauge]] = tuple,
    limits: Limits = LIMITS,
    access: Access,
    registry: Registry | None = None,
    tree: ProofTree | None = None,
    verifiers: Callable[[str], Sequence[Verifier]] = lambda space: (),
    add_checkpoint: Callable[[bytes], str] | None = None,
    cors_origins: tuple[str, ...] = (),
    rates: Rates = NO_RATES,
    trusted_proxies: tuple[Network, ...] = (),
) -> FoldlogApp:
    """Creates the Flask application with all routes. The caller creates the objects that the routes
    use, and passes them as arguments.

    - `access` decides which operations a caller may use.
    - `ready` is a function that returns, for each service that Foldlog needs, the name of that
      service and either `ok` or an error message.
    - `alarms` is a function that returns {alarm: the number of spaces that have it}. An alarm needs
      an operator, but leaves the service ready.
    - `gauges` is a function that returns the values for monitoring.
    - `registry` grants and revokes tokens. If it is `None`, the application has no routes for
      tokens and devices.
    - `tree` returns proofs, and `verifiers` returns the public keys of a space. If `tree` is
      `None`, the application has no routes for proofs.
    - `add_checkpoint` cosigns checkpoints of other logs. If it is `None`, the application has no
      route for cosigning.
    - `cors_origins` lists the origins whose web pages may call the service.
    - `rates` limits the requests of each client.
    - `trusted_proxies` lists the networks of the proxies whose `X-Forwarded-For` header is trusted.
    """
    app = FoldlogApp(
        access=access, cors=Cors(cors_origins), rates=rates, trusted_proxies=trusted_proxies
    )
    app.register_blueprint(sync_blueprint(store, limits))
    app.register_blueprint(events_blueprint(store, limits))
    app.register_blueprint(snapshot_blueprint(master, limits))
    app.register_blueprint(records_blueprint(master, limits))
    app.register_blueprint(collections_blueprint(store, limits))
    app.register_blueprint(erasure_blueprint(store, limits))
    app.register_blueprint(skipping_blueprint(store, limits))
    if registry is not None:
        app.register_blueprint(tokens_blueprint(registry, access, limits))
        app.register_blueprint(devices_blueprint(registry, access, limits))
        app.register_blueprint(enrolment_blueprint(registry, limits))
    app.register_blueprint(history_blueprint(master, limits))
    if tree is not None:
        app.register_blueprint(proofs_blueprint(store, tree, verifiers))
    if add_checkpoint is not None:
        app.register_blueprint(witness_blueprint(add_checkpoint))
    app.register_blueprint(meta_blueprint(app, ready, alarms, gauges, limits))
    return app
