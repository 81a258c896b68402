"""Lists all projections with the versions of their code.

Each new space gets one row in the table `projections` for each projection of this list.
"""

from __future__ import annotations

from typing import Any

from foldlog.domain.merge import FOLD_VERSION
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.proofs.projection import PROOFS_VERSION, ProofsProjection

from .projection import Projection

#: {name of the projection: version of the code that fills its tables}
VERSIONS = {"master": FOLD_VERSION, "proofs": PROOFS_VERSION}


def projection_named(name: str) -> Projection[Any]:
    """Creates the projection with this name, `master` or `proofs`, and returns it.

    Each thread must create its own object. Raises `KeyError` if the name is unknown.
    """
    made: dict[str, Projection[Any]] = {
        "master": MasterProjection(),
        "proofs": ProofsProjection(),
    }
    return made[name]
