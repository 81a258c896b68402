"""Renders the service's metrics in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from foldlog.domain.ports import Gauge

__all__ = ["CONTENT_TYPE_PLAIN_0_0_4", "exposition"]


class _Gauges(Collector):
    """Passes gauges to the Prometheus client library. The gauges are read from the iterable once,
    when the object is created."""

    def __init__(self, gauges: Iterable[Gauge]):
        self._gauges = list(gauges)

    def collect(self) -> Iterator[Metric]:
        for gauge in self._gauges:
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=list(gauge.labels))
            family.add_metric(list(gauge.labels.values()), gauge.value)
            yield family


def exposition(gauges: Iterable[Gauge]) -> bytes:
    """Returns the gauges as bytes in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(gauges))
    return generate_latest(registry)
