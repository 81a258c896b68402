"""Reads the stored events of a log, with their salts and hashes, in batches for an audit."""

from __future__ import annotations

from collections.abc import Iterator

from foldlog.domain.audit import Evidence
from foldlog.infrastructure.postgres.connection.datastore import Datastore

from .pages import page_params, select_page

BATCH_EVENTS = 1_000
BATCH_BYTES = 8 * 2**20

SELECT_EVIDENCE = select_page("originator_version, state, salt, ops_hash")


def evidence(
    datastore: Datastore, space: str, *, after: int, through: int
) -> Iterator[list[Evidence]]:
    """Yields the stored events with `after < seq <= through` as lists of `Evidence` objects.

    The objects are in the order of seq. If the log has a gap, where events are missing, the
    function skips the gap without an error. The audit that uses the lists detects the gap.
    """
    while after < through:
        params = page_params(space, after, through, limit=BATCH_EVENTS, bytes_max=BATCH_BYTES)
        rows = datastore.fetch_all(SELECT_EVIDENCE, params, binary=True)
        if not rows:
            return
        yield [Evidence(state, salt, ops_hash) for _, state, salt, ops_hash in rows]
        after = rows[-1][0]
