"""A plan of path patching in rounds: which receivers, through which input, at which positions, and how many heads each time.

rounds:
  - group: name_movers        # what the heads of this round are called
    receivers: logits         # `logits`, a group of an earlier round, or nodes such as a9.h9, m3
    positions: end            # of the receivers' inputs: a role, an offset (s2+1), a list, or all
    top: 5
  - group: s_inhibition
    receivers: name_movers
    input: q                  # through which input of heads: q, k or v
    positions: end
    sender_positions: end     # where senders are replaced
    threshold: 0.05           # a change of at least 5 % of the metric
    by: absolute              # `signed`: falls alone; `absolute`: rises count, too
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from circuitdisc.checks import check_choice, check_number, check_whole
from circuitdisc.discovery.selection import By
from circuitdisc.engine.path_effects import ALL, Positions
from circuitdisc.errors import BadFile, BadSetting, UnknownName
from circuitdisc.files import read_yaml
from circuitdisc.graph import QKV
from circuitdisc.schemas import validate

BUILT_IN = ("auto", "direct")


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        group: the name of the heads that it finds.
        receivers: `logits`, groups of earlier rounds, or names of nodes.
        input: through which input of the receiving heads paths go; None where the receivers are no heads.
        positions: where the receivers' inputs are set.
        sender_positions: where senders are replaced.
        top: keep at most so many heads.
        threshold: keep heads that change the metric by at least this fraction.
        by: `signed`: only falls of the metric count; `absolute`: changes of either sign do.
    """

    group: str
    receivers: tuple[str, ...]
    input: QKV | None = None
    positions: Positions = ALL
    sender_positions: Positions = ALL
    top: int | None = None
    threshold: float | None = None
    by: By = "signed"

    def __post_init__(self) -> None:
        if self.top is None and self.threshold is None:
            raise BadSetting(f"round '{self.group}' has neither top nor threshold: say how many heads it keeps")
        if self.top is not None:
            check_whole(f"round '{self.group}': top", self.top)
        if self.threshold is not None:
            check_number(f"round '{self.group}': threshold", self.threshold, low=0.0)
        check_choice(f"by in round '{self.group}'", self.by, get_args(By))
        if self.input is not None:
            check_choice(f"input in round '{self.group}'", self.input, get_args(QKV))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "receivers": list(self.receivers)}


@dataclass(frozen=True)
class PatchingPlan:
    """Rounds in order; `auto`: further rounds follow from what each one finds, through q, k and v."""

    rounds: tuple[Round, ...]
    auto: bool = False


def read_plan(plan: str | Mapping[str, Any], top: int | None, threshold: float | None, by: By) -> PatchingPlan:
    """A plan by name, from a YAML file, or from a mapping with the key `rounds`.

    Args:
        plan: `direct` (one round: direct effects on the logits), `auto` (that round, then rounds into what was found, until
            nothing passes), the path of a YAML file, or its content.
        top, threshold, by: of rounds that do not say.

    Raises:
        UnknownName: there is no such plan, or a key of a round is not known.
        BadFile: the file is not a plan.
        BadSetting: a round has a value that cannot be used.
    """
    if isinstance(plan, str) and plan in BUILT_IN:
        return PatchingPlan((Round("direct", ("logits",), top=top, threshold=threshold, by=by),), auto=plan == "auto")
    if isinstance(plan, str):
        return _from_mapping(_read_yaml(plan), top, threshold, by, plan)
    return _from_mapping(plan, top, threshold, by, "the plan")


def _read_yaml(plan: str) -> Any:
    path = Path(plan)
    if path.suffix not in (".yaml", ".yml"):
        raise UnknownName("plan", plan, BUILT_IN, "Your own plan goes into a .yaml file.")
    return read_yaml(path)


def _from_mapping(data: Any, top: int | None, threshold: float | None, by: By, where: str) -> PatchingPlan:
    if not isinstance(data, Mapping) or not isinstance(data.get("rounds"), Sequence) or not data["rounds"]:
        raise BadFile(f"{where}: a plan has the key 'rounds' with a list of rounds: see docs/path-patching.md")
    if foreign := set(data) - {"rounds"}:
        raise UnknownName(f"key of {where}", sorted(foreign)[0], ("rounds",))
    rounds: list[Round] = []
    for number, given in enumerate(data["rounds"], 1):
        rounds.append(_round(given, number, top, threshold, by, where))
        if rounds[-1].group in [one.group for one in rounds[:-1]]:
            raise BadFile(f"{where}: two rounds are called '{rounds[-1].group}': give each its own group name")
    return PatchingPlan(tuple(rounds))


def _round(given: Any, number: int, top: int | None, threshold: float | None, by: By, where: str) -> Round:
    if not isinstance(given, Mapping):
        raise BadFile(f"{where}: round {number} is not a mapping with group, receivers, input, positions, top or threshold")
    for name in given:
        if name not in Round.__dataclass_fields__:
            raise UnknownName(f"key of round {number} in {where}", str(name), Round.__dataclass_fields__)
    if "receivers" not in given:
        raise BadFile(f"{where}: round {number} names no receivers: give logits, a group, or nodes")
    settings = dict(given)
    receivers = settings.pop("receivers")
    settings.setdefault("group", f"round {number}")
    settings.setdefault("by", by)
    if "top" not in settings and "threshold" not in settings:
        settings |= {"top": top, "threshold": threshold}
    settings["receivers"] = [receivers] if isinstance(receivers, str) else receivers
    return validate(Round, settings, f"{where}: round {number}")
