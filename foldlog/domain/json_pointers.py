"""Escapes names for JSON pointers (RFC 6901), which tell the place of a fault in a JSON
document."""

from __future__ import annotations


def escaped(name: str) -> str:
    """Returns a member's name escaped for use in a JSON pointer: `~` becomes `~0` and `/` becomes
    `~1`."""
    return name.replace("~", "~0").replace("/", "~1")
