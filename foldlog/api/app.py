"""The application, declared with Flask and served by `AsgiServer` alone.

Flask gives the routes, templates and blueprints, which the OpenAPI document is generated from too.
Its WSGI interface is closed, because a WSGI server would hold a thread for each waiting client.
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
    """The rest of a path: a record's id may contain slashes, also doubled and at its ends.

    `a%2Fb` and `a/b` name the same record. The id is the last part of a path, so this is
    unambiguous.
    """

    regex = r"[\s\S]+"
    part_isolating = False
    weight = 200


class DigitsConverter(BaseConverter):
    """A number without a sign, so that no spelling of a word beside it, as `entries`, matches."""

    regex = r"[0-9]+"


class FoldlogApp(Flask):
    """A declared application, with the parts that every request needs."""

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
        """Raises `TypeError`."""
        raise TypeError("serve foldlog by ASGI: AsgiServer(app, resources)")


def create_app(
    *,
    store: EventStore,
    master: MasterTable,
    ready: Callable[[], dict[str, str]],
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
    """Declares the application from ready-made parts; it reads no environment of its own.

    - `access` decides which caller may do what.
    - `ready` returns the services that this one needs, each with `ok` or the fault.
    - `gauges` returns the values for monitoring.
    - `registry` grants and revokes tokens; without it those operations are absent.
    - `tree` gives proofs, and `verifiers` the public keys of a space; without a tree those
      operations are absent.
    - `add_checkpoint` cosigns checkpoints of other logs; without it that operation is absent.
    - `cors_origins` are the origins whose pages may call the service.
    - `rates` limits clients.
    - `trusted_proxies` may name the client whose request they forward.
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
    app.register_blueprint(history_blueprint(master, limits))
    if tree is not None:
        app.register_blueprint(proofs_blueprint(store, tree, verifiers))
    if add_checkpoint is not None:
        app.register_blueprint(witness_blueprint(add_checkpoint))
    app.register_blueprint(meta_blueprint(app, ready, gauges, limits))
    return app
