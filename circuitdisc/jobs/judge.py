"""All scores of a run's circuit at once, and a verdict in plain words: `circuitdisc score RUN --all`."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from circuitdisc.bound import KEY, check_written, identity_of_scores, read_own_edge_scores
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadRun, BadSetting, CircuitdiscError
from circuitdisc.identity import hash_bytes
from circuitdisc.jobs.pipeline import EDGE_SCORES, JUDGEMENT, changed_run, score_circuit, writing_run
from circuitdisc.pages.scores import judged, judgement_tables
from circuitdisc.pages.tables import scores_alone
from circuitdisc.pages.verdict import Verdict, verdict
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo, Run, stoppable
from circuitdisc.schemas import check_format, validate
from circuitdisc.scoring import Scores
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.judged import JudgementFile
from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.registry import OTHER_KEYS, REGISTRY
from circuitdisc.scoring.work import Works, tell

UNFINISHED = ".partial.jsonl"
PACE = "seconds of a run"
"""The unit that says how long a circuit took on an example, for the estimate of a call that goes on."""


@dataclass(frozen=True, repr=False)
class Judgement(Result):
    """Every score of one circuit.

    Args:
        scores: faithfulness in all its forms, KL, accuracy.
        results: the other scores by name; None where one cannot be had here, and `missing` may say why.
        missing: score -> sentence.
        circuit: the circuit, whose notes belong to the verdict; None if it is not at hand.
    """

    FORMAT = "circuitdisc.judgement"
    WHERE = "not a judgement"

    scores: Scores
    results: Mapping[str, Any]
    missing: Mapping[str, str]
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
        missing = [f"{name}: {why}" for name, why in self.missing.items()]
        tables = judgement_tables(self.results, self._numbers())
        return "\n\n".join([scores_alone(self.scores), *tables, *missing, self.said.text])

    def table(self) -> list[Row]:
        """A line a score that has a value with an interval; `of` says where it stands: `scores`, `curve.cpr`, ..."""
        rows = [{"of": "scores", **row} for row in self.scores.table()]
        for name, result in self.results.items():
            own = {} if result is None else {part: one for part, one in vars(result).items() if isinstance(one, Score)}
            rows += [{"of": f"{name}.{part}", **row} for part, one in own.items() for row in one.table()]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: the verdict, and every score under its own name."""
        return {"format": self.FORMAT, "version": self.VERSION, "verdict": self.verdict(), **self._numbers()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **more: Any) -> "Judgement":
        """The inverse of `to_dict`.

        Args:
            more: `circuit`, which a file does not hold.

        Raises:
            BadFile: the data is of something else, or a key of it is missing or wrong.
            UnknownName: a score is of a package that is not installed.
        """
        check_format(data, cls.FORMAT, cls.WHERE, cls.VERSION)
        file: Any = validate(JudgementFile, data, cls.WHERE)
        results = {
            name: None if value is None else validate(REGISTRY.get(name).result, value, f"{cls.WHERE}, {name}")
            for name, value in data.items()
            if name not in OTHER_KEYS
        }
        return cls(**{"scores": file.scores, "results": results, "missing": file.missing, **more})

    def __repr__(self) -> str:
        return f"Judgement({self.scores!r}; {len(self.results)} more, {len(self.missing)} missing)"

    def _numbers(self) -> dict[str, Any]:
        results = {name: None if result is None else result.to_dict() for name, result in self.results.items()}
        return {"scores": self.scores.to_dict(), **results, "missing": dict(self.missing)}


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
    options: dict[str, Any] = {
        "ablation": dict(config["ablation"]),
        "metric": config["metric"].get("name"),
        "seed": config["seed"],
        "memory": config["memory"],
        "progress": progress,
    }
    ranked = _ranked(run, circuit)
    scores = identity_of_scores(config, model, task, circuit)
    if not changes:
        check_written(run.path(JUDGEMENT), scores, ("weights", "examples"))
    # the budget decides on the chunks of examples in which the hypothesis tests are kept
    identity = replace(scores, settings={**scores.settings, "edge_scores": _digest(ranked), "memory": str(config["memory"])})
    kinds, missing = _kinds()
    identity = identity.with_packages({name: one for kind in kinds for name, one in REGISTRY.versions(kind.name).items()})
    key = identity.digest[:8]
    unfinished = run.path(f"judgement.{key}{UNFINISHED}")
    _tell_of_others(run, key)
    units = Memo(unfinished, identity)
    call = ScoreCall(model, task, circuit, options, ranked)
    lacking = {kind.name: why for kind in kinds if (why := kind.lacking(call)) is not None}
    missing |= {kind.words: why for kind in kinds if (why := lacking.get(kind.name))}

    def compute(kind: ScoreKind) -> dict[str, Any]:
        return kind.compute(replace(call, journal=run.path(f"judgement.{key}.{kind.name}{UNFINISHED}"))).to_dict()

    def attempt(kind: ScoreKind) -> Any:
        try:
            value = units.get(kind.words, partial(compute, kind))
            return validate(kind.result, value, f"{unfinished}, {kind.words}")
        except BadRun:  # nothing more can be written
            raise
        except CircuitdiscError as error:  # one score that cannot be had here does not take the others with it
            missing[kind.words] = str(error)
            return None

    def say(pace: float, works: Works | None = None) -> None:
        """How long what is left will take."""
        units.get(PACE, lambda: pace)
        if progress:
            tell(({"scores": works} if works else {}) | {kind.words: _work_of(kind, call) for kind in todo}, pace)

    try:
        own = run.path(f"judgement.{key}.scores{UNFINISHED}")
        todo = [kind for kind in kinds if kind.name not in lacking and not units.knows(kind.words)]
        if units.knows("scores") and units.knows(PACE) and todo:
            say(units.get(PACE, float))
        first = Scores.from_dict(
            units.get("scores", lambda: score_circuit(model, task, circuit, config, progress, own, say).to_dict())
        )
        own.unlink(missing_ok=True)
        units.spread({kind.words: partial(compute, kind) for kind in todo}, may_fail=True)
        results = {kind.name: None if kind.name in lacking else attempt(kind) for kind in kinds}
    finally:
        units.close()
    judgement = Judgement(first, results, missing, circuit)
    if not changes:
        run.write(JUDGEMENT, {**judgement.to_dict(), KEY: scores.to_dict()})
    for path in run.folder.glob(f"judgement.{key}.*"):
        path.unlink()
    return judgement


def _work_of(kind: ScoreKind, call: ScoreCall) -> Works | None:
    """What a score will run; None if it does not say, or will end in a sentence."""
    try:
        return None if kind.work is None else kind.work(call)
    except CircuitdiscError:
        return None


def _kinds() -> tuple[list[ScoreKind], dict[str, str]]:
    """Every score that can be used, and why the others cannot."""
    kinds, missing = [], {}
    for name in REGISTRY.names:
        try:
            kinds.append(REGISTRY.get(name))
        except BadSetting as error:
            missing[name] = str(error)
    return kinds, missing


def _tell_of_others(run: Run, key: str) -> None:
    """Say that what was begun with other settings is not gone on with."""
    others = sorted(path.name for path in run.folder.glob(f"judgement.*{UNFINISHED}") if path.name.split(".")[1] != key)
    if others and not run.path(f"judgement.{key}{UNFINISHED}").exists():
        print(
            f"starting afresh: {', '.join(others)} in {run.folder} was begun with other settings, or by another version "
            "(remove it if not wanted)",
            file=sys.stderr,
        )


def _digest(ranked: Discovery | None) -> str:
    scores = None if ranked is None else ranked.edge_scores
    return "" if scores is None else hash_bytes(scores.tobytes())


def _ranked(run: Run, circuit: Circuit) -> Discovery | None:
    """The run's edge scores as a discovery, if it has any."""
    scores = read_own_edge_scores(run.path(EDGE_SCORES), circuit)
    return None if scores is None else Discovery(circuit, scores)
