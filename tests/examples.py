"""How many examples a property test takes: a profile for `make test`, and one for CI."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

#: CI sets the profile `ci`, which runs more examples of each property test.
PROFILE = os.environ.get("FOLDLOG_TEST_PROFILE", "quick")
FACTOR = {"quick": 1, "ci": 4}[PROFILE]


def examples(count: int, **options: Any) -> settings:
    """The settings of a property test with `count` examples in the profile `quick`."""
    return settings(max_examples=count * FACTOR, deadline=None, **options)
