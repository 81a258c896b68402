"""Gauges: numbers that an operator watches."""

from __future__ import annotations

from typing import NamedTuple


class Gauge(NamedTuple):
    """A number that an operator watches. Its name states the unit and never changes."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = {}
