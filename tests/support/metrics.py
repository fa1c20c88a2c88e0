"""Parses metrics like Prometheus, and lists the metrics that the dashboard queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

DOCUMENTS = Path(__file__).parents[2] / "docs/metrics"

#: Prefixes of the names of all exported metrics.
PREFIXES = ("tornado_", "process_", "nginx_", "node_", "haproxy_")


def parse(text: str) -> list[Sample]:
    """Return the samples of a response, parsed by Prometheus' client library."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(text: str, name: str, **labels: str) -> float:
    """Return the sum of the samples with a name and these labels; there must be at least one."""
    found = [sample.value for sample in parse(text) if sample.name == name and labels.items() <= sample.labels.items()]
    assert found, f"no {name} with {labels} in:\n{text[-3000:]}"
    return sum(found)


def names(text: str) -> set[str]:
    """Return the names of all samples."""
    return {sample.name for sample in parse(text)}


def queries() -> Iterator[str]:
    """Yield the queries of the dashboard."""
    for panel in json.loads((DOCUMENTS / "dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


def dashboard_metrics(*prefixes: str) -> set[str]:
    """Return the metrics in the dashboard's queries whose names have one of the prefixes."""
    found = {name for query in queries() for name in re.findall(r"\b[a-z]+_\w+", query) if name.startswith(prefixes)}
    assert found
    return found
