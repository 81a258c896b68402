"""What makes a figure worthless. Nothing here is caught: no table without its truth."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """The service did not do what was measured, or the machine not what is compared with."""
