"""The kinds of ablation by name. A new one is a file, a line here and a file in conf/ablation.

Other packages declare theirs as entry points; nothing is imported until one is asked for.

    [project.entry-points."circuitdisc.ablations"]
    my_ablation = "my_package.ablations:MyAblation"
"""

import inspect
from importlib import import_module
from typing import Any

from circuitdisc.ablation.base import AblationKind
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.outside import OutsideNames, versions_of

ABLATIONS = {
    "zero": "zero:Zero",
    "zero_folded": "zero_folded:ZeroFolded",
    "mean": "mean:Mean",
    "resample": "resample:Resample",
    "optimal": "optimal:Optimal",
}
"""Name -> module of this package and class."""
OUTSIDE = OutsideNames("circuitdisc.ablations", "ablation")


def get_kind(name: object) -> type[AblationKind]:
    """The kind of this name.

    Raises:
        UnknownName: there is none; the message offers the nearest names.
        BadSetting: another package declares it, and it clashes, cannot be imported, or is no kind of ablation.
    """
    entries = OUTSIDE.entries()
    if not isinstance(name, str) or name not in {*ABLATIONS, *entries}:
        raise UnknownName("ablation kind", str(name), {*ABLATIONS, *entries})
    OUTSIDE.refuse_clash(name, ABLATIONS)
    if name in ABLATIONS:
        module, _, kind = ABLATIONS[name].partition(":")
        return getattr(import_module(f"circuitdisc.ablation.{module}"), kind)
    kind = OUTSIDE.load(name)
    bare = [setting for setting, default in settings_of(kind).items() if default is inspect.Parameter.empty]
    if not (isinstance(kind, type) and issubclass(kind, AblationKind)) or bare:
        problem = f"has no default for its setting '{bare[0]}'" if bare else "is no subclass of AblationKind"
        raise BadSetting(
            f"{OUTSIDE.where(name)} {problem}: it must be one whose constructor takes (ablation, *, setting=default)"
        )
    return kind


def settings_of(kind: Any) -> dict[str, Any]:
    """A kind's own settings and their defaults."""
    if not isinstance(kind, type):
        return {}
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def versions(name: str) -> dict[str, str]:
    """The version of the package that a kind comes from, for kinds of other packages."""
    return {} if name in ABLATIONS else versions_of(OUTSIDE.entries()[name])
