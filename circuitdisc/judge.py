"""All scores of a run's circuit at once, and a verdict in plain words: `circuitdisc score RUN --all`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import CircuitdiscError
from circuitdisc.files import read_arrays
from circuitdisc.pipeline import EDGE_SCORES, changed_run, score_circuit
from circuitdisc.report.tables import scores_table, text_table
from circuitdisc.report.wording import number
from circuitdisc.runs import Run
from circuitdisc.scoring import Scores
from circuitdisc.scoring.completeness import Completeness, completeness
from circuitdisc.scoring.curves import Curve, curve
from circuitdisc.scoring.hypotheses import hypothesis_tests
from circuitdisc.scoring.hypotheses_result import HypothesisTests
from circuitdisc.scoring.minimality import Minimality, minimality

JUDGEMENT = "judgement.json"
_LINES = 10  # of a table with a line for each part or set


@dataclass(frozen=True)
class Judgement:
    """Every score of one circuit.

    Args:
        scores: faithfulness in all its forms, KL, accuracy.
        completeness, minimality, tests, curve: None where the score cannot be had here; `missing` says why.
        missing: score -> sentence.
    """

    scores: Scores
    completeness: Completeness | None
    minimality: Minimality | None
    tests: HypothesisTests | None
    curve: Curve | None
    missing: Mapping[str, str]

    def verdict(self) -> list[str]:
        """What the scores say, a sentence each; nothing that was not computed."""
        faithful = self.scores.get("faithfulness")
        lines = []
        if faithful.value is None:
            lines.append(f"Faithfulness is undefined: {faithful.note}.")
        else:
            off = 100 * abs(1 - faithful.value)
            lines.append(
                f"Faithful within {off:.3g} % on {faithful.n:,} held-out examples "
                f"({faithful.metric}, {faithful.ablation} ablation)."
            )
        if self.minimality is not None:
            idle = [need.part for need in self.minimality.needs if not need.passes]
            count = len(self.minimality.needs)
            named = f": {', '.join(idle[:6])}{', ...' if len(idle) > 6 else ''}" if idle else ""
            words = (
                f"{len(idle)} of its {count} {self.minimality.by}s do"
                if idle
                else f"None of its {count} {self.minimality.by}s does"
            )
            lines.append(
                f"{words} nothing (less than {self.minimality.threshold:.0%} of the metric in every case tried){named}."
            )
        if self.completeness is not None:
            worst = self.completeness.worst
            removed = " and ".join(worst.removed[:4]) + (" and more" if len(worst.removed) > 4 else "")
            by = number(worst.value)
            lines.append(
                f"Removing {removed} separates it from the model by {by}, the most that was found."
                if removed
                else f"It lies {by} from the model as it is, and no set of its parts that was tried separates them further."
            )
            if self.completeness.complement.value is not None:
                without = self.completeness.complement.value
                lines.append(f"The model without the circuit keeps {100 * without:.3g} % of the metric.")
        if self.tests is not None:
            good = [test.name for test in self.tests.tests if test.for_circuit]
            bad = [test.name for test in self.tests.tests if not test.for_circuit]
            lines.append(f"Tests in its favour: {', '.join(good) or 'none'}; against it: {', '.join(bad) or 'none'}.")
        return lines

    def text(self) -> str:
        """All tables, then the verdict."""
        parts = [scores_table(self.scores)]
        if self.completeness is not None:
            parts.append(
                _table(f"completeness by {self.completeness.by}, sets K with the largest gaps", self.completeness.table())
            )
        if self.minimality is not None:
            parts.append(_table(f"minimality by {self.minimality.by}, the least needed first", self.minimality.table()))
        if self.tests is not None:
            parts.append(_table("hypothesis tests", [_test_row(test) for test in self.tests.tests]))
        if self.curve is not None:
            parts.append(_table("faithfulness over size", self.curve.table()))
            areas = [{"area": one.name, **_value(one)} for one in (self.curve.cpr, self.curve.cmd, self.curve.overshoot)]
            parts.append(_table("areas", areas))
        parts += [f"{name}: {why}" for name, why in self.missing.items()]
        return "\n\n".join([*parts, "verdict\n" + "\n".join(f"  {line}" for line in self.verdict())])

    def to_dict(self) -> dict[str, Any]:
        found = {"completeness": self.completeness, "minimality": self.minimality, "curve": self.curve, "tests": self.tests}
        return {
            "format": "circuitdisc.judgement",
            "version": 1,
            "verdict": self.verdict(),
            "scores": self.scores.to_dict(),
            **{name: None if one is None else one.to_dict() for name, one in found.items()},
            "missing": dict(self.missing),
        }


def judge(folder: str | Path, changes: Mapping[str, Any], progress: bool = True) -> Judgement:
    """Compute every score of a run's circuit.

    Args:
        changes: sections as in the configuration; what is not given stays as the run had it. Without changes the result is also
            written into the run's folder, as judgement.json.

    Raises:
        BadRun: the folder is not a run, or has no circuit.
    """
    run, circuit, config, model, task = changed_run(folder, changes)
    scores = score_circuit(model, task, circuit, config, progress)
    shared: dict[str, Any] = {
        "ablation": dict(config["ablation"]),
        "metric": config["metric"].get("name"),
        "seed": config["seed"],
        "memory": config["memory"],
        "progress": progress,
    }
    missing: dict[str, str] = {}

    def attempt(name: str, compute: Any) -> Any:
        try:
            return compute()
        except CircuitdiscError as error:  # one score that cannot be had here does not take the others with it
            missing[name] = str(error)
            return None

    judgement = Judgement(
        scores,
        attempt("completeness", lambda: completeness(model, task, circuit, **shared)),
        attempt("minimality", lambda: minimality(model, task, circuit, **shared)),
        attempt("hypothesis tests", lambda: hypothesis_tests(model, task, circuit, **shared)),
        attempt("curve", lambda: curve(model, task, found, **shared)) if (found := _scored(run, circuit)) else None,
        missing,
    )
    if not changes:
        run.write(JUDGEMENT, judgement.to_dict())
    return judgement


def _scored(run: Run, circuit: Circuit) -> Discovery | None:
    """The run's edge scores as a discovery, if it has any."""
    path = run.path(EDGE_SCORES)
    scores = read_arrays(path).get("edge_scores") if path.exists() else None
    return None if scores is None else Discovery(circuit, scores)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"{title}\nnothing to show"
    headers = list(rows[0])
    cells = [[_cell(row[name]) for name in headers] for row in rows[:_LINES]]
    more = f"\n... {len(rows) - _LINES} more in {JUDGEMENT}" if len(rows) > _LINES else ""
    return f"{title}\n\n{text_table(headers, cells)}{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value).replace("−", "-") if isinstance(value, float) else str(value)


def _test_row(test: Any) -> dict[str, Any]:
    row = {"test": test.name, "null hypothesis": test.null, "statistic": test.statistic, "p": test.p_value, "n": test.n}
    return {**row, "rejected": test.reject, "speaks for the circuit": test.for_circuit}


def _value(one: Any) -> dict[str, Any]:
    controls = [value for value in one.controls if value is not None]
    return {"value": one.value, "low": one.low, "high": one.high, "random": sum(controls) / len(controls) if controls else None}
