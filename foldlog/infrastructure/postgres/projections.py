"""The list of all projections. A new space gets a position in each of them."""

from __future__ import annotations

from typing import Any

from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import FOLD_VERSION
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.proofs.projection import PROOFS_VERSION, ProofsProjection

from .projection import Projection

#: name -> version of the code that fills it
VERSIONS = {"master": FOLD_VERSION, "proofs": PROOFS_VERSION}


def projection_named(name: str, limits: Limits = LIMITS) -> Projection[Any]:
    """Returns a new projection. Each thread needs its own."""
    made: dict[str, Projection[Any]] = {
        "master": MasterProjection(limits),
        "proofs": ProofsProjection(),
    }
    return made[name]
