"""All scores of a run's circuit at once, and a verdict in plain words: `circuitdisc score RUN --all`."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from circuitdisc.bound import KEY, check_written, identity_of_scores, read_own_edge_scores
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadRun, CircuitdiscError
from circuitdisc.identity import Identity, hash_bytes
from circuitdisc.pipeline import EDGE_SCORES, JUDGEMENT, changed_run, score_circuit, writing_run
from circuitdisc.report.judgement import judgement_parts
from circuitdisc.report.tables import scores_table, text_table
from circuitdisc.report.wording import number
from circuitdisc.runs import Memo, Run, stoppable
from circuitdisc.scoring import Scores
from circuitdisc.scoring.completeness import Completeness, completeness
from circuitdisc.scoring.curves import Curve, curve
from circuitdisc.scoring.hypotheses import hypothesis_tests
from circuitdisc.scoring.hypotheses_result import HypothesisTests
from circuitdisc.scoring.minimality import Minimality, minimality
from circuitdisc.scoring.plain import from_plain

UNFINISHED = ".partial.jsonl"
COMPLETE = 0.1  # of the full model's metric: a circuit with no larger gap is called complete
T = TypeVar("T")
_LINES = 10  # of a table with a line for each part or set


@dataclass(frozen=True)
class Judgement:
    """Every score of one circuit.

    Args:
        scores: faithfulness in all its forms, KL, accuracy.
        completeness, minimality, tests, curve: None where the score cannot be had here; `missing` says why.
        missing: score -> sentence.
        edges: minimality of the edges of an edge circuit; the other one is of its nodes.
    """

    scores: Scores
    completeness: Completeness | None
    minimality: Minimality | None
    tests: HypothesisTests | None
    curve: Curve | None
    missing: Mapping[str, str]
    edges: Minimality | None = None

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
        lines += [_idle_sentence(one) for one in (self.edges, self.minimality) if one is not None]
        if self.completeness is not None:
            lines.append(_completeness_sentence(self.completeness))
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
        parts, told = [scores_table(self.scores)], {part.title: part for part in judgement_parts(self.to_dict())}

        def add(title: str, rows: Sequence[Mapping[str, Any]], part: str) -> None:
            lines = "\n".join([f"{told[part].of}.", *told[part].lines]).replace("−", "-")
            parts.append(f"{_table(title, rows)}\n{lines}")

        if self.completeness is not None:
            title = f"completeness by {self.completeness.by}, sets K with the largest gaps"
            add(title, self.completeness.table(), "Completeness")
        if self.minimality is not None:
            title = f"minimality by {self.minimality.by}, the least needed first (random control: the test of minimality)"
            add(title, self.minimality.table(), "Minimality")
            if self.edges is not None:
                add("minimality by edge, the least needed first", self.edges.table(), "Minimality of edges")
        if self.tests is not None:
            add("hypothesis tests", [_test_row(test) for test in self.tests.tests], "Hypothesis tests")
        if self.curve is not None:
            add("faithfulness over size", self.curve.table(), "Faithfulness at every size")
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
            "minimality_of_edges": None if self.edges is None else self.edges.to_dict(),
            "missing": dict(self.missing),
        }


def judge(folder: str | Path, changes: Mapping[str, Any], progress: bool = True, command: str = "") -> Judgement:
    """Compute every score of a run's circuit.

    What is finished is kept in the run's folder until all is: killed, the same call goes on where it was, to the same result.
    Other settings (or another model, task or circuit) have a file of their own, and start afresh.

    Args:
        changes: sections as in the configuration; what is not given stays as the run had it. Without changes the result is also
            written into the run's folder, as judgement.json.
        command: that the user typed, for what is said after Ctrl-C.

    Raises:
        BadRun: the folder is not a run, has no circuit, or cannot be written; another process writes in it; or the weights or
            examples have changed since the circuit was found, though `changes` does not say so.
        Stopped: Ctrl-C; it says what goes on.
    """

    def kept() -> bool:
        return any(Path(folder).glob(f"judgement.*{UNFINISHED}"))

    with stoppable(command or f"circuitdisc score {shlex.quote(str(folder))} --all", kept), writing_run(folder):
        return _judge(folder, changes, progress)


def _judge(folder: str | Path, changes: Mapping[str, Any], progress: bool) -> Judgement:
    run, circuit, config, model, task = changed_run(folder, changes)
    shared: dict[str, Any] = {
        "ablation": dict(config["ablation"]),
        "metric": config["metric"].get("name"),
        "seed": config["seed"],
        "memory": config["memory"],
        "progress": progress,
    }
    source = _scored(run, circuit)
    scores = identity_of_scores(config, model, task, circuit)
    if not changes:
        check_written(run.path(JUDGEMENT), scores, ("weights", "examples"))
    # the budget decides on the chunks of examples in which the hypothesis tests are kept
    identity = replace(scores, settings={**scores.settings, "edge_scores": _digest(source), "memory": str(config["memory"])})
    unfinished, of_tests = _unfinished(run, identity)
    units = Memo(unfinished, identity)
    missing: dict[str, str] = {}

    def attempt(name: str, kind: type[T], compute: Callable[[], Any]) -> T | None:
        try:
            return from_plain(kind, units.get(name, lambda: compute().to_dict()))
        except BadRun:  # nothing more can be written
            raise
        except CircuitdiscError as error:  # one score that cannot be had here does not take the others with it
            missing[name] = str(error)
            return None

    if source is None:
        algorithm = circuit.provenance.algorithm or "its algorithm"
        missing["curve"] = f"{algorithm} gives no score for every edge, so that there are no circuits of other sizes"
    try:
        judgement = Judgement(
            Scores.from_dict(units.get("scores", lambda: score_circuit(model, task, circuit, config, progress).to_dict())),
            attempt("completeness", Completeness, lambda: completeness(model, task, circuit, **shared)),
            attempt("minimality", Minimality, lambda: minimality(model, task, circuit, **shared)),
            attempt(
                "hypothesis tests",
                HypothesisTests,
                lambda: hypothesis_tests(model, task, circuit, journal=of_tests, **shared),
            ),
            attempt("curve", Curve, lambda: curve(model, task, source, **shared)) if source else None,
            missing,
            attempt("minimality of edges", Minimality, lambda: minimality(model, task, circuit, by="edge", **shared))
            if circuit.granularity == "edge"
            else None,
        )
    finally:
        units.close()
    if not changes:
        run.write(JUDGEMENT, {**judgement.to_dict(), KEY: scores.to_dict()})
    for path in (unfinished, of_tests):
        path.unlink(missing_ok=True)
    return judgement


def _unfinished(run: Run, identity: Identity) -> tuple[Path, Path]:
    """Where finished scores, and the finished circuits of the hypothesis tests, are kept until all is done."""
    key = identity.digest[:8]
    names = (f"judgement.{key}{UNFINISHED}", f"judgement.{key}.tests{UNFINISHED}")
    others = sorted(path.name for path in run.folder.glob(f"judgement.*{UNFINISHED}") if path.name not in names)
    if others and not run.path(names[0]).exists():
        print(
            f"starting afresh: {', '.join(others)} in {run.folder} was begun with other settings (remove it if not wanted)",
            file=sys.stderr,
        )
    return run.path(names[0]), run.path(names[1])


def _digest(source: Discovery | None) -> str:
    scores = None if source is None else source.edge_scores
    return "" if scores is None else hash_bytes(scores.tobytes())


# --- sentences -----------------------------------------------------------------------------------------------------------


def _idle_sentence(found: Minimality) -> str:
    idle, count = [need.part for need in found.needs if not need.passes], len(found.needs)
    named = f": {', '.join(idle[:6])}{', ...' if len(idle) > 6 else ''}" if idle else ""
    verb = "does" if len(idle) == 1 else "do"
    words = f"{len(idle)} of its {count} {found.by}s {verb}" if idle else f"None of its {count} {found.by}s does"
    return f"{words} nothing (less than {found.threshold:.0%} of the metric in every case tried){named}."


def _completeness_sentence(found: Completeness) -> str:
    """Complete or not, against a share of the full model's metric, which is said; what random circuits do stands beside it."""
    worst, full = found.worst, abs(next(gap.full for gap in found.gaps if gap.kind == "empty"))
    by, chance = number(worst.value), ""
    if found.controls:
        chance = f"; random circuits of its size come apart by {number(max(one.worst for one in found.controls))} at worst"
    names = [*worst.removed[:4], *(["more"] if len(worst.removed) > 4 else [])]
    removed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    told = f"removing {removed} separates it from the model by {by}" if names else f"it lies {by} from the model as it is"
    if full == 0:
        return f"{told[0].upper()}{told[1:]}, the most of {len(found.gaps)} sets tried{chance}."
    share = (
        f"{100 * worst.value / full:.3g} % of the model's {number(full)}, where up to {100 * COMPLETE:g} % counts as complete"
    )
    head = "Complete" if worst.value <= COMPLETE * full else "Not complete"
    return f"{head}: {told}, the most of {len(found.gaps)} sets tried ({share}{chance})."


def _scored(run: Run, circuit: Circuit) -> Discovery | None:
    """The run's edge scores as a discovery, if it has any."""
    scores = read_own_edge_scores(run.path(EDGE_SCORES), circuit)
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
    random = sum(controls) / len(controls) if controls else None
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n, "random": random}
