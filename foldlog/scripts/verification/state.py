"""Reads and writes the file of `foldlog verify --state`, which has the last verified position.

The next run of the command continues from this position.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from foldlog.domain.audit import AuditCursor
from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.files import write_new
from foldlog.scripts.exports.lines import Header


class State(msgspec.Struct):
    """The content of the state file. The names of the fields must stay the same, because they
    are stored in existing files.
    """

    space: str
    log: str
    place: AuditCursor


def read_state(path: Path, header: Header) -> AuditCursor | None:
    """Returns the position (`AuditCursor`) that is saved in the state file, or `None` if the file
    is missing.

    Raises `OperatorError` if the file is invalid or belongs to another log.
    """
    if not path.exists():
        return None
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except msgspec.MsgspecError as exc:
        raise OperatorError(f"{path} is not a state file of a verification: {exc}") from exc
    if (state.space, state.log) != (header.space, header.log):
        raise OperatorError(f"{path} belongs to another log: {state.space} {state.log}")
    return state.place


def write_state(path: Path, header: Header, position: AuditCursor) -> None:
    """Writes the position in the log to the state file."""
    state = State(header.space, header.log, position)
    write_new(path, msgspec.json.encode(state).decode(), 0o644)
