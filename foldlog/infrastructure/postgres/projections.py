"""Every projection that there is. Each space has one position of each, from its first event on."""

from __future__ import annotations

from typing import Any

from ...domain.limits import LIMITS, Limits
from ...domain.merge import FOLD_VERSION
from .master import MasterProjection
from .projection import Projection
from .proofs import PROOFS_VERSION, ProofsProjection

#: name -> version of the code that fills it
VERSIONS = {"master": FOLD_VERSION, "proofs": PROOFS_VERSION}


def projection_named(name: str, limits: Limits = LIMITS) -> Projection[Any]:
    """A new one each time: none is shared between threads."""
    made: dict[str, Projection[Any]] = {
        "master": MasterProjection(limits),
        "proofs": ProofsProjection(),
    }
    return made[name]
