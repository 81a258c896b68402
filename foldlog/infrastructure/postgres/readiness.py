"""Checks that the database answers, accepts writes, and has the right schema, for `GET /readyz`."""

from __future__ import annotations

import structlog

from foldlog.domain.redaction import redacted

from .connection.datastore import Datastore
from .connection.errors import DATABASE_ERRORS, needs_new_connections
from .schema.migrate import pending

log = structlog.get_logger("foldlog.readiness")

SELECT_IS_READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on'"


def readiness(datastore: Datastore) -> dict[str, str]:
    """Runs three checks, and returns a dict with the keys `database`, `writes` and `schema`.

    Each value is `ok` or an English text that describes the problem. If the database cannot be
    reached, the values of `writes` and `schema` are `unknown`.
    """
    try:
        with datastore.rows() as cursor:
            missing = pending(cursor)
            [(is_read_only,)] = cursor.execute(SELECT_IS_READ_ONLY).fetchall()
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            datastore.check_pool()
        # The answer omits the error's text, because that text names hosts and roles.
        log.warning("database-unreachable", error=redacted(str(exc).strip().splitlines()[0]))
        problem = "unreachable, or it does not answer: the service's log says more"
        return {"database": problem, "writes": "unknown", "schema": "unknown"}
    if is_read_only:
        datastore.check_pool()  # another host of the URL may take writes by now
    return {
        "database": "ok",
        "writes": "the database only reads: a standby, or configured so" if is_read_only else "ok",
        "schema": f"lacks {', '.join(missing)}: run foldlog migrate" if missing else "ok",
    }
