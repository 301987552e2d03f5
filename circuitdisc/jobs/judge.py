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
from circuitdisc.jobs.discover import EDGE_SCORES, JUDGEMENT, changed_run, score_circuit, writing_run
from circuitdisc.pages.judged import judged
from circuitdisc.pages.judgement import judgement_parts
from circuitdisc.pages.tables import scores_alone, text_table
from circuitdisc.pages.verdict import Verdict, verdict
from circuitdisc.runs import Memo, Run, stoppable
from circuitdisc.schemas import validate
from circuitdisc.scoring import Scores
from circuitdisc.scoring.completeness import Completeness, completeness
from circuitdisc.scoring.curves import Curve, curve
from circuitdisc.scoring.hypotheses import hypothesis_tests
from circuitdisc.scoring.hypotheses_result import HypothesisTests
from circuitdisc.scoring.minimality import Minimality, minimality
from circuitdisc.wording import number

UNFINISHED = ".partial.jsonl"
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
        circuit: the circuit, whose notes belong to the verdict; None if it is not at hand.
    """

    scores: Scores
    completeness: Completeness | None
    minimality: Minimality | None
    tests: HypothesisTests | None
    curve: Curve | None
    missing: Mapping[str, str]
    edges: Minimality | None = None
    circuit: Circuit | None = None

    @property
    def said(self) -> Verdict:
        """What the scores say, and what speaks against believing it; nothing of what was not computed."""
        return verdict(self.scores, self.circuit) + judged(self._numbers())

    def verdict(self) -> list[str]:
        """The same, a sentence each."""
        return [*self.said.lines, *self.said.caveats]

    def text(self) -> str:
        """All tables, then the verdict."""
        parts, told = [scores_alone(self.scores)], {part.title: part for part in judgement_parts(self._numbers())}

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
        return "\n\n".join([*parts, self.said.text])

    def to_dict(self) -> dict[str, Any]:
        return {"format": "circuitdisc.judgement", "version": 1, "verdict": self.verdict(), **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        found = {"completeness": self.completeness, "minimality": self.minimality, "curve": self.curve, "tests": self.tests}
        return {
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
            return validate(kind, units.get(name, lambda: compute().to_dict()), f"{unfinished}, {name}")
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
            circuit,
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


# --- tables -----------------------------------------------------------------------------------------------------------


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
