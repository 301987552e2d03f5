"""Discovery: one file an algorithm, all behind `discover`."""

from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.registry import ALGORITHMS, discover

__all__ = ["ALGORITHMS", "Discovery", "SearchContext", "discover"]
