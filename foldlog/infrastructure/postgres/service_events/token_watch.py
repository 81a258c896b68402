"""Logs each token for every space, because the grant of such a token is no event of a log.

The service's database role can insert such a token. The role can neither change nor delete the row,
so the watch sees each row, however short the use of the token was.
"""

from __future__ import annotations

from threading import Event

import structlog

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

log = structlog.get_logger("foldlog.tokens")

WATCH_SECONDS = 10.0

SELECT_OF_EVERY_SPACE = """
SELECT token::text, role, name, granted_by
  FROM tokens
 WHERE space = ''
 ORDER BY granted_at_ms, token
"""


class TokenWatch:
    """Reads the tokens for every space every `WATCH_SECONDS`, and logs those that are new to it."""

    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._seen: set[str] = set()
        self._is_first = True

    def run(self, closing: Event) -> None:
        """Looks until the event `closing` is set. Call this in a separate thread."""
        while True:
            try:
                self.look()
            except DATABASE_ERRORS as exc:
                log.warning("token_watch_waits_for_the_database", error=str(exc))
            except Exception:  # the thread must go on, because its end would go unnoticed
                log.exception("token_watch_failed")
            if closing.wait(WATCH_SECONDS):
                return

    def look(self) -> None:
        """Logs each token for every space that earlier calls have not seen.

        The first call after a start logs all of them with the level `info`. A later call logs a new
        token with the level `warning`. Raises one of `DATABASE_ERRORS` if the database fails.
        """
        with self._datastore.rows() as cursor:
            found = cursor.execute(SELECT_OF_EVERY_SPACE, prepare=True).fetchall()
        tell = log.info if self._is_first else log.warning
        for token, role, name, granted_by in found:
            if token not in self._seen:
                tell("every_space_token", token=token, role=role, name=name, granted_by=granted_by)
        self._seen.update(row[0] for row in found)
        self._is_first = False
