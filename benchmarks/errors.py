"""Errors that make a figure wrong or impossible."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """The service or a comparison failed to do the measured work. The whole run fails."""


class Skipped(Exception):
    """A program outside the project is missing. The table leaves its row out."""
