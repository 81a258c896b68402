"""Keeps the limits that the service has published, so that a call can be checked without a
connection.
"""

from __future__ import annotations

from typing import Any

import msgspec

from foldlog.domain.limits import LIMITS, Limits

from .meta import Meta

#: the published limits are read again after a day, because an operator may change them
LEARN_AGAIN_MS = 24 * 3_600_000
#: the limits that one changeset, sent alone, can exceed
_CHECKED = (
    "operations_per_changeset_max",
    "operations_per_push_max",
    "event_bytes_max",
    "inflated_bytes_max",
    "body_bytes_max",
    "values_per_body_max",
    "nesting_max",
    "integer_max",
    "fields_per_operation_max",
    "field_name_length_max",
)


class KnownLimits:
    """Reads and writes the limits of the service in the replica's file. Until the service has been
    reached, the defaults count.
    """

    def __init__(self, meta: Meta):
        self._meta = meta

    @property
    def current(self) -> Limits:
        known: dict[str, int] = self._meta.get("limits", {})
        return msgspec.structs.replace(LIMITS, **known) if known else LIMITS

    def is_due(self, now_ms: int) -> bool:
        """Returns whether the limits should be read from the service: they are unknown, a day old,
        or the clock of the device was set back.
        """
        learned_at = self._meta.get("limits_at")
        return learned_at is None or not 0 <= now_ms - learned_at < LEARN_AGAIN_MS

    def learn(self, document: dict[str, Any] | None, now_ms: int) -> None:
        """Saves the limits of a service. `document` is the answer to `GET /v1/limits`, or `None` if
        the service does not publish them; the known limits then stay.

        Only positive integers are saved. An answer of another form must not stop an app that is
        offline.
        """
        self._meta.set(limits_at=now_ms)
        if document is not None:
            known = {name: document[name] for name in _CHECKED if _is_limit(document.get(name))}
            self._meta.set(limits=known)

    def forget_age(self) -> None:
        """Lets the next sync read the limits again. Called after the service has refused a
        changeset for a limit that was unknown here.
        """
        self._meta.set(limits_at=None)


def _is_limit(value: Any) -> bool:
    return type(value) is int and value > 0
