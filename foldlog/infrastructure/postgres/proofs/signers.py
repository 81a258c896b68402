"""Stores which folder signs the logs of a database, and which one cosigns for other services.

One folder signs all logs of a database, and not one folder each log: otherwise a log without a
checkpoint in a dump could be signed first by one service, and after the restore by another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import structlog
from psycopg import Cursor

from foldlog.infrastructure.postgres.connection.datastore import Datastore

log = structlog.get_logger("foldlog.signers")

#: `log` signs the logs of this database, `witness` cosigns the logs of other services.
Use = Literal["log", "witness"]

# The first columns name the folder that signs, the last one the caller's own row.
SELECT_STANDING = """
SELECT s.folder::text, s.key, own.refused_why
  FROM (SELECT) always
  LEFT JOIN signers s
    ON s.use = %(use)s AND s.signs
  LEFT JOIN signers own
    ON own.folder = %(folder)s AND own.key = %(key)s
"""

HOLD = """
SELECT folder::text
  FROM signers
 WHERE use = %(use)s
   AND signs
   FOR SHARE
"""

LOCK = """
SELECT pg_advisory_xact_lock(hashtext('foldlog signers'), hashtext(%(use)s))
"""

SELECT_SIGNER = """
SELECT folder::text, key
  FROM signers
 WHERE use = %(use)s
   AND signs
   FOR UPDATE
"""

START = """
INSERT INTO signers (use, folder, key, signs)
VALUES (%(use)s, %(folder)s, %(key)s, true)
    ON CONFLICT (folder, key) DO UPDATE
   SET signs = true,
       since = excluded.since,
       refused_why = NULL,
       refused_since = NULL
"""

SET_KEY = """
UPDATE signers
   SET key = %(key)s
 WHERE use = %(use)s
   AND signs
   AND folder = %(folder)s
   AND key = %(old)s
"""

REFUSE = """
INSERT INTO signers (use, folder, key, signs, refused_why, refused_since)
VALUES (%(use)s, %(folder)s, %(key)s, false, %(why)s, now())
    ON CONFLICT (folder, key) DO UPDATE
   SET refused_why = excluded.refused_why,
       refused_since = coalesce(signers.refused_since, excluded.refused_since)
 WHERE signers.refused_why IS DISTINCT FROM excluded.refused_why
"""

END_REFUSAL = """
UPDATE signers
   SET refused_why = NULL,
       refused_since = NULL
 WHERE folder = %(folder)s
   AND key = %(key)s
   AND refused_why IS NOT NULL
"""

END_ALL_REFUSALS = """
UPDATE signers
   SET refused_why = NULL,
       refused_since = NULL
 WHERE use = %(use)s
   AND refused_why IS NOT NULL
"""

REPLACE = """
UPDATE signers
   SET signs = false,
       replaced_by = %(folder)s,
       replaced_at = now(),
       replaced_why = %(why)s
 WHERE use = %(use)s
   AND signs
"""

# The beginning of each statement that ends alarms of signers.
END_ALARMS = """
UPDATE checkpoints
   SET alarm = NULL,
       alarm_detail = NULL,
       alarm_since = NULL,
       alarm_raised_by = NULL"""

# An operator who takes over has decided about the alarms of all folders.
END_SIGNING_ALARMS = f"""{END_ALARMS}
 WHERE alarm IS NOT NULL
"""

SELECT_SIGNERS = """
SELECT use,
       folder::text,
       key,
       signs,
       since::text,
       replaced_by::text,
       replaced_at::text,
       replaced_why,
       refused_why,
       refused_since::text
  FROM signers
 ORDER BY use, signers.since, folder, key
"""


class Standing(NamedTuple):
    """The folder and the key that sign, or `None`, and why the caller's own folder was refused."""

    folder: str | None
    key: str | None
    refused_why: str | None


class StoredSigner(NamedTuple):
    """A folder that signs, has signed, or was refused.

    `key` is the public key that the folder's service uses, encoded in base64. The members
    `replaced_...` describe the takeover that replaced the folder, and the members `refused_...`
    the alarm of a service that may not sign.
    """

    use: str
    folder: str
    key: str
    signs: bool
    since: str
    replaced_by: str | None
    replaced_at: str | None
    replaced_why: str | None
    refused_why: str | None
    refused_since: str | None


class Signers:
    """Reads and changes which folder signs, for one `use` of the keys.

    The methods raise `StorageUnavailable` if the database cannot be reached.
    """

    def __init__(self, datastore: Datastore, use: Use):
        self._datastore = datastore
        self._use: Use = use

    def may_sign(
        self,
        folder: str,
        keys: Sequence[str],
        *,
        taken_over_by: str | None = None,
        agrees: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Tells whether a folder may sign. A refusal is stored, as an alarm.

        `keys` contains the public keys of the caller's key file, the current one last. If no folder
        signs yet, and `agrees` tells that the folder's checkpoints agree with those of the
        database, the folder is the one that signs from now on. `taken_over_by` is the mark of the
        takeover in the folder.
        """
        own = {"use": self._use, "folder": folder, "key": keys[-1]}
        found = self._standing(own)
        if found.folder is None and taken_over_by is None and agrees():
            self._adopt(own)
            found = self._standing(own)
        why = self._refusal(found, folder, keys, taken_over_by)
        if why is not None:
            if why != found.refused_why:
                log.error("signer_refused", use=self._use, folder=folder, why=why)
                self._run(REFUSE, own | {"why": why})
            return False
        if found.refused_why is not None:
            self._run(END_REFUSAL, own)
        if found.key != keys[-1]:
            self._run(SET_KEY, own | {"old": found.key})  # the key was rotated
        return True

    def _standing(self, own: dict[str, Any]) -> Standing:
        with self._datastore.reading() as cursor:
            [row] = cursor.execute(SELECT_STANDING, own, prepare=True).fetchall()
        return Standing(*row)

    def _adopt(self, own: dict[str, Any]) -> None:
        with self._datastore.writing() as cursor:
            cursor.execute(LOCK, own)
            if cursor.execute(SELECT_SIGNER, own).fetchone() is None:
                cursor.execute(START, own)
                log.info("signer_starts", **own)

    def _refusal(
        self, found: Standing, folder: str, keys: Sequence[str], taken_over_by: str | None
    ) -> str | None:
        """Returns the reason why a folder may not sign, or `None` if it may."""
        how = "foldlog keys takeover" + (" --witness" if self._use == "witness" else "")
        other_key = ""
        if found.key is not None and found.key not in keys:
            other_key = f"; the keys differ too: {keys[-1]} here, {found.key} there"
        if taken_over_by is not None:
            return f"the folder {taken_over_by} has taken over from this folder{other_key}"
        if found.folder is None:
            return f"the checkpoints in this folder are not those of the database: run {how}"
        if found.folder != folder:
            return f"the folder {found.folder} signs for this database{other_key}: run {how}"
        if other_key:
            return f"another key signs with this folder: {found.key}, and not {keys[-1]}"
        return None

    def _run(self, statement: str, params: dict[str, Any]) -> None:
        with self._datastore.writing() as cursor:
            cursor.execute(statement, params)

    @contextmanager
    def holding(self, folder: str) -> Iterator[bool]:
        """Keeps a takeover away during the `with` block.

        Yields `True` if the folder signs, and `False` if another one does.
        """
        with self._datastore.writing() as cursor:
            yield holds(cursor, self._use, folder)

    @contextmanager
    def replacing(self) -> Iterator[Replacing]:
        """Locks the row of the folder that signs, so that the `with` block can replace it."""
        with self._datastore.writing() as cursor:
            params = {"use": self._use}
            cursor.execute(LOCK, params)
            found = cursor.execute(SELECT_SIGNER, params).fetchone()
            yield Replacing(cursor, self._use, found[0] if found else None)


class Replacing:
    """A takeover under the lock. `current` is the id of the folder that signs, or `None`."""

    def __init__(self, cursor: Cursor[Any], use: Use, current: str | None):
        self._cursor = cursor
        self._use = use
        self.current = current

    def replace(self, folder: str, key: str, why: str) -> None:
        """Makes another folder the one that signs, and ends the alarms of all folders."""
        params = {"use": self._use, "folder": folder, "key": key, "why": why}
        self._cursor.execute(REPLACE, params)
        self._cursor.execute(END_ALL_REFUSALS, params)
        self._cursor.execute(START, params)
        if self._use == "log":
            self._cursor.execute(END_SIGNING_ALARMS)


def holds(cursor: Cursor[Any], use: Use, folder: str) -> bool:
    """Tells whether a folder signs, and keeps a takeover away until the transaction ends."""
    found = cursor.execute(HOLD, {"use": use}).fetchone()
    return found is not None and found[0] == folder


def stored_signers(datastore: Datastore) -> list[StoredSigner]:
    """Returns a list of all folders that sign, have signed, or were refused."""
    return [StoredSigner(*row) for row in datastore.fetch_all(SELECT_SIGNERS)]
