"""A discovery algorithm that can be called by name: one of this package, or one that another package declares."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitdisc.discovery.base import Discovery


@dataclass(frozen=True)
class Algorithm:
    """A discovery algorithm that can be called by name.

    Args:
        name: also the name of its module in `circuitdisc.discovery` and of its function.
        summary: one line for `circuitdisc list algorithms`.
        by_mean: its edge scores are means over examples of the metric's change, or estimates of them.
    """

    name: str
    summary: str
    by_mean: bool = field(default=False, kw_only=True)

    @property
    def function(self) -> "Callable[..., Discovery]":
        return getattr(import_module(f"circuitdisc.discovery.{self.name}"), self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword-only parameters and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}

    @property
    def versions(self) -> dict[str, str]:
        """Versions of packages that its results depend on beside those of every run."""
        return {}
