"""JSON pointers (RFC 6901): the places of faults in a document."""

from __future__ import annotations


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
