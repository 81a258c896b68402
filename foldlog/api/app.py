"""The app, built from ready-made parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response
from flask_compress import Compress
from werkzeug.routing import BaseConverter

from ..domain.limits import LIMITS, Limits
from ..domain.ports import EventStore, Gauge, MasterTable
from .events import events_blueprint
from .logging import register_request_log
from .meta import meta_blueprint
from .problems import register_problems
from .records import records_blueprint
from .snapshot import snapshot_blueprint
from .sync import sync_blueprint

COMPRESSION: dict[str, Any] = {
    "COMPRESS_ALGORITHM": ["zstd", "br", "gzip"],
    "COMPRESS_MIMETYPES": ["application/json", "text/html"],
    # Below this the answer fits one packet with its headers, and compressing saves nobody time.
    "COMPRESS_MIN_SIZE": 1_024,
    "COMPRESS_LEVEL": 5,
}


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
) -> Flask:
    """Builds the app from ready-made parts; it reads no environment of its own.

    `ready` names what the service stands on, each with `ok` or what is wrong; `gauges` are what
    monitoring reads.
    """
    app = Flask(__name__, static_folder=None)
    app.config.update(COMPRESSION)
    app.url_map.merge_slashes = False
    app.url_map.converters["record_id"] = RecordIdConverter
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}

    # Hooks after a request run from the last to the first: compression, headers, the log.
    register_request_log(app)
    app.after_request(_set_headers)
    Compress(app)
    register_problems(app)

    app.register_blueprint(sync_blueprint(store, limits))
    app.register_blueprint(events_blueprint(store, limits))
    app.register_blueprint(snapshot_blueprint(master))
    app.register_blueprint(records_blueprint(master, limits))
    app.register_blueprint(meta_blueprint(ready, gauges, limits))
    return app


def _set_headers(response: Response) -> Response:
    """Answers are what users wrote: no cache keeps them, and no browser guesses what they are."""
    response.headers.setdefault("Cache-Control", "private, no-store")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
