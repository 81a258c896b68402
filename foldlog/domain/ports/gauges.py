"""Defines gauges: metrics whose current value an operator watches."""

from __future__ import annotations

from typing import NamedTuple


class Gauge(NamedTuple):
    """The current value of a metric. The name contains the unit, and it must never change because
    dashboards refer to it."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = {}
