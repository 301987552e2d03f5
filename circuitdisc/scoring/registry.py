"""The scores of `circuitdisc score RUN --all`. A new score is a file here with a `SCORE`, and its name in the list below.

Other packages declare theirs as entry points (`circuitdisc/plugins.py`), each a `ScoreKind` of the entry point's name.
"""

from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from circuitdisc.plugins import Registry, Unfit
from circuitdisc.scoring.kind import ScoreKind

_FILES = (
    "completeness",
    "minimality",
    "curves",
    "hypotheses",
    "minimality_of_edges",
    "agreement",
)
SCORES: dict[str, ScoreKind] = {
    kind.name: kind for kind in (import_module(f"circuitdisc.scoring.{name}").SCORE for name in _FILES)
}

OTHER_KEYS = ("format", "version", "verdict", "scores", "missing", "identity")
"""Keys of judgement.json that are no scores of this registry."""


def _adopt(name: str, declared: Any) -> ScoreKind:
    if not isinstance(declared, ScoreKind):
        raise Unfit("is no score")
    if declared.name != name or name in OTHER_KEYS:
        raise Unfit(f"is a score named {declared.name!r}")
    lacks = [method for method in ("to_dict", "describe") if not hasattr(declared.result, method)]
    if lacks or not is_dataclass(declared.result):
        raise Unfit(f"has a result without {lacks[0]}()" if lacks else "has a result that is no dataclass")
    return declared


REGISTRY = Registry(
    "score",
    SCORES,
    _adopt,
    "a ScoreKind of the entry point's name, whose result is a dataclass with to_dict() and describe()",
)
