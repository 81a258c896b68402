"""The log as an audit reads it: bytes, salts and hashes, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

from foldlog.domain.audit import Evidence
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated

from .pages import select_page

BATCH_EVENTS = 1_000
BATCH_BYTES = 8 * 2**20

SELECT_EVIDENCE = select_page("originator_version, state, salt, ops_hash")


def evidence(
    datastore: Datastore, space: str, *, after: int, through: int
) -> Iterator[list[Evidence]]:
    """The events with `after < seq <= through`, as they are stored, holes and all."""
    while after < through:
        names = {
            "space": space,
            "after": after,
            "through": through,
            "limit": BATCH_EVENTS,
            "bytes_max": BATCH_BYTES,
        }
        with translated(datastore), datastore.rows() as cursor:
            rows = cursor.execute(SELECT_EVIDENCE, names, prepare=True, binary=True).fetchall()
        if not rows:
            return
        yield [Evidence(state, salt, ops_hash) for _, state, salt, ops_hash in rows]
        after = rows[-1][0]
