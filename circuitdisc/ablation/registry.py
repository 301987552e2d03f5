"""The kinds of ablation by name. A new one is a file, a line here and a file in conf/ablation.

Other packages enter theirs, subclasses of `AblationKind`, as entry points (`circuitdisc/plugins.py`).
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from circuitdisc.ablation.base import AblationKind
from circuitdisc.errors import UnknownName
from circuitdisc.plugins import Registry, Unfit

SHARED = {"kind": "mean", "scope": "group", "prompts": "clean", "target": "output"}
"""Settings that every kind has, with their defaults; the others are its own."""


@dataclass(frozen=True)
class ListedKind:
    """A kind of ablation that can be called by name.

    Args:
        where: its module in `circuitdisc.ablation`, and its class.
        declared: the class, if it is another package's.
    """

    where: str
    declared: type[AblationKind] | None = None

    @property
    def function(self) -> type[AblationKind]:
        module, _, name = self.where.partition(":")
        return self.declared or getattr(import_module(f"circuitdisc.ablation.{module}"), name)

    @property
    def summary(self) -> str:
        """One line for `circuitdisc list ablations`."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The kind's own settings and their defaults."""
        parameters = inspect.signature(self.function.__init__).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


ABLATIONS = {
    "zero": ListedKind("zero:Zero"),
    "zero_folded": ListedKind("zero_folded:ZeroFolded"),
    "mean": ListedKind("mean:Mean"),
    "resample": ListedKind("resample:Resample"),
    "optimal": ListedKind("optimal:Optimal"),
}


class KindRegistry(Registry[ListedKind]):
    """As other registries; what a file in conf/ would hold has the settings that all kinds share."""

    def settings(self, name: str) -> dict[str, Any]:
        return {**SHARED, "kind": name, **self.get(name).settings}


def adopt_kind(name: str, kind: Any) -> ListedKind:
    """A class of another package as a kind of ablation.

    Raises:
        Unfit: it is none, or has a setting without default.
    """
    if not (isinstance(kind, type) and issubclass(kind, AblationKind)):
        raise Unfit("is no subclass of AblationKind")
    listed = ListedKind(name, kind)
    if bare := [setting for setting, default in listed.settings.items() if default is inspect.Parameter.empty]:
        raise Unfit(f"has no default for its setting '{bare[0]}'")
    return listed


REGISTRY = KindRegistry("ablation", ABLATIONS, adopt_kind, "one whose constructor takes (ablation, *, setting=default, ...)")


def get_kind(name: object) -> ListedKind:
    """The kind of this name.

    Raises:
        UnknownName: there is none; the message offers the nearest names.
        BadSetting: another package declares it, and it clashes, cannot be imported, or is no kind of ablation.
    """
    if not isinstance(name, str) or name not in REGISTRY.names:
        raise UnknownName("ablation kind", str(name), REGISTRY.names)
    return REGISTRY.get(name)
