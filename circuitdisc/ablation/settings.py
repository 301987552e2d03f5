"""`Ablation`: what cut edges carry, as a user asks for it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, get_args

from circuitdisc.ablation.base import AblationKind, Prompts, Scope, Target
from circuitdisc.ablation.registry import ABLATIONS, REGISTRY, SHARED, get_kind
from circuitdisc.errors import BadSetting, UnknownName


@dataclass(frozen=True)
class Ablation:
    """What cut edges carry.

    Args:
        kind: a name from `ABLATIONS` (`zero`, `mean`, `resample`, ...), or of a kind of another package.
        scope: what `mean` averages over: examples of the same `group` at the same position (without groups: all examples
            at the same position), all examples at the same `position`, or all examples and positions (`dataset`).
        prompts: whether `mean` averages over the `clean` or the `corrupted` prompts. Always those of the train split.
        target: `output` cuts what a head writes; `pattern` (head circuits alone) replaces its attention pattern.
        settings: the kind's own (see its docstring); what is left out takes its default.

    Raises:
        UnknownName: a setting has no such value, or the kind has no such setting.
        BadSetting: the kind cannot be used so: an attention pattern is to be ablated by `zero_folded`, which is about outputs.
    """

    kind: str = "mean"
    scope: Scope = "group"
    prompts: Prompts = "clean"
    target: Target = "output"
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        known = get_kind(self.kind).settings
        for name, allowed in (("scope", Scope), ("prompts", Prompts), ("target", Target)):
            if getattr(self, name) not in get_args(allowed):
                raise UnknownName(f"ablation {name}", str(getattr(self, name)), get_args(allowed))
        for name in self.settings:
            if name not in known:
                raise UnknownName("ablation setting", name, [*SHARED, *known])
        object.__setattr__(self, "settings", {**known, **self.settings})
        _ = self.method  # raises where the settings cannot be used

    @cached_property
    def method(self) -> AblationKind:
        """What the engine asks: the kind with these settings."""
        return get_kind(self.kind).function(self, **self.settings)

    @property
    def label(self) -> str:
        """What is printed beside every score."""
        return f"{self.method.label} of the attention pattern" if self.target == "pattern" else self.method.label

    @property
    def needs_corrupted(self) -> bool:
        return self.method.needs_corrupted

    @property
    def cuts_embedding_to_nothing(self) -> bool:
        """Without the embedding nothing is left of the residual stream before the first layer."""
        return self.method.empties_embedding

    @property
    def versions(self) -> dict[str, str]:
        """Versions of packages that the kind comes from beside those of every run."""
        return REGISTRY.versions(self.kind)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SHARED} | dict(self.settings)


def every_ablation() -> Iterator[Ablation]:
    """All combinations of shared settings that go together, of the kinds of this package."""
    for shared in product(ABLATIONS, get_args(Scope), get_args(Prompts), get_args(Target)):
        with suppress(BadSetting):
            yield Ablation(*shared)


def get_ablation(ablation: "str | Ablation | dict[str, Any]") -> Ablation:
    """An `Ablation` from its kind, its settings (the kind's own among them), or itself.

    Raises:
        UnknownName: the kind or one of the settings is not known.
        BadSetting: a setting is out of its bounds.
    """
    if isinstance(ablation, Ablation):
        return ablation
    given: dict[str, Any] = {"kind": ablation} if isinstance(ablation, str) else dict(ablation)
    shared = {name: given.pop(name) for name in SHARED if name in given}
    return Ablation(**shared, settings=given)
