"""Gives the log of a space a new log id. This is called a fork.

An operator forks a log whose signed events are lost, for example after the restore of an old
backup.
"""

from __future__ import annotations

from .connection.datastore import Datastore
from .log.heads import absent

SET_NEW_LOG = """
UPDATE spaces
   SET log = gen_random_uuid()
 WHERE space = %(space)s
   AND NOT importing
RETURNING log::text
"""


def fork_log(datastore: Datastore, space: str) -> str:
    """Gives the log of a space a new random id, and returns the new id.

    Raises `UnknownSpace` if the database has no such space, and `SpaceImporting` if the space is
    being imported.
    """
    with datastore.committed() as cursor:
        row = cursor.execute(SET_NEW_LOG, {"space": space}).fetchone()
        if row is None:
            raise absent(cursor, space)
    return str(row[0])
