"""What makes a figure worthless, or impossible."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """The service did not do what was measured, or the machine not what is compared with.

    Nothing catches it: no table without its truth.
    """


class Skipped(Exception):
    """Something that is not part of the project is not there: the table goes without it."""
