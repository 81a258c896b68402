"""The app, built from ready-made parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from werkzeug.routing import BaseConverter

from foldlog.api.http.access import Access
from foldlog.api.http.cors import Cors
from foldlog.api.http.rates import NO_RATES, Network, Rates
from foldlog.api.http.threads import Turns
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

from .flask_door import FlaskDoor


class RecordIdConverter(BaseConverter):
    """All that is left of a path: a record's id may hold slashes, at its ends and doubled too.

    WSGI hands us the path decoded, so that `a%2Fb` and `a/b` are one; as the id comes last, this
    loses nothing, and needs no header that only some servers give.
    """

    regex = r"[\s\S]+"
    part_isolating = False
    weight = 200


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
    turns: Turns | None = None,
) -> FlaskDoor:
    """Builds the app from ready-made parts; it reads no environment of its own.

    `access` decides who may do what; without a `registry` there are no tokens to grant.
    `ready` names what the service stands on, each with `ok` or what is wrong; `gauges` are what
    monitoring reads. Without a `tree` nothing is proven; `verifiers` are the keys of who signs.
    `add_checkpoint` cosigns those of other logs. Pages of `cors_origins` may call it. `rates` are
    what clients are held to, and `trusted_proxies` those who may say whose requests they hand on.
    `turns` are those of threads at the database.
    """
    app = FlaskDoor(__name__, access, Cors(cors_origins), rates, trusted_proxies, turns)
    app.url_map.merge_slashes = False
    app.url_map.converters["record_id"] = RecordIdConverter
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}

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
    app.register_blueprint(meta_blueprint(ready, gauges, limits))
    return app
