"""The budget of steps that checks against schemas may take. `schema_steps` counts the steps.

The client library imports this module too, and it is installed without the validator of schemas.
"""

from __future__ import annotations

from collections.abc import Callable

from .limits import LIMITS

#: The steps after which a group of pushes ends, which are decided together. The push that reaches
#: them is decided still, and the further ones wait for the next group.
GROUP_STEPS_MAX = LIMITS.schema_steps_per_changeset_max


class TooManySteps(Exception):
    """Raised if a check needs more steps than its budget has left."""


class Steps:
    """A budget of steps for one or more checks, by default that of one changeset."""

    def __init__(self, most: int = LIMITS.schema_steps_per_changeset_max):
        self.most = self.left = most

    @property
    def spent(self) -> int:
        return self.most - self.left

    def take(self, steps: int) -> None:
        """Takes steps that were spent already, or all that are left."""
        self.left = max(0, self.left - steps)

    def spend(self, steps: int) -> None:
        """Takes steps from the budget. If too few are left, takes all of them and raises
        `TooManySteps`."""
        self.left -= steps
        if self.left < 0:
            self.left = 0
            raise TooManySteps

    def spend_counted(self, count: Callable[[int], int]) -> None:
        """Takes the steps that `count(left)` returns. `count` may count only as far as `left`, and
        raise `TooManySteps`; the budget is used up then."""
        try:
            self.spend(count(self.left))
        except TooManySteps:
            self.left = 0
            raise

    def check(self) -> None:
        """Raises `TooManySteps` if the budget is used up."""
        if self.left <= 0:
            raise TooManySteps
