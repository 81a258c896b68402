"""Lists the problems (error responses) that several operations have in common."""

from __future__ import annotations

from foldlog.api.http.problems import UnsupportedMediaType
from foldlog.domain.errors import (
    FoldlogError,
    HistoryUnavailable,
    LogBehind,
    LogIncomplete,
    OutcomeUnknown,
    ProjectionBehind,
    SpaceImporting,
    StorageUnavailable,
    UnknownSpace,
)

Problems = tuple[type[FoldlogError], ...]

READ_PROBLEMS: Problems = (UnknownSpace, SpaceImporting, StorageUnavailable)
#: Problems of reads that wait for the master table.
PROJECTED_PROBLEMS: Problems = (*READ_PROBLEMS, LogBehind, ProjectionBehind)
HISTORY_PROBLEMS: Problems = (*PROJECTED_PROBLEMS, HistoryUnavailable)
WRITE_PROBLEMS: Problems = (
    UnsupportedMediaType,
    SpaceImporting,
    StorageUnavailable,
    OutcomeUnknown,
    LogIncomplete,
)
