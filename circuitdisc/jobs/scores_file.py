"""`circuitdisc score --scores FILE`: edge scores that another tool has written, judged without a run."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output

if TYPE_CHECKING:
    from circuitdisc.scoring.curves import Curve

SIZES = "sizes"


def measure(path: Path, call: Call) -> str:
    """Choose a circuit by the scores in a file, and judge it and the circuits of ten sizes; returns the tables."""
    from circuitdisc.discovery.registry import discover
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.jobs.pipeline import build_task, score_circuit
    from circuitdisc.pages.scores.curve import curve_verdict
    from circuitdisc.pages.tables import scores_alone
    from circuitdisc.pages.verdict import Verdict, as_sentences, verdict
    from circuitdisc.scoring.curves import curve

    settings, own = call.settings, call.own
    curve_alone = own["edges"] == SIZES
    own["edges"] = None if curve_alone else own["edges"]
    model = load_model(**settings["model"])
    task = build_task(model, settings)
    asked: dict[str, Any] = {"ablation": dict(settings["ablation"]), "metric": call.metric, **call.shared}
    found = discover(model, task, "from_file", path=str(path), **asked, **own)
    parts, said, data = [], Verdict((), as_sentences(found.circuit.provenance.notes)), dict[str, Any]()
    if not curve_alone:
        scores = score_circuit(model, task, found.circuit, settings, settings["progress"])
        parts.append(scores_alone(scores))
        said += verdict(scores, found.circuit)
        data["scores"] = scores.to_dict()
    if curve_alone or found.edge_scores is not None:
        sizes = curve(model, task, found, grow=own["grow"], by=own["by"], **asked)
        parts.append(_curve_text(sizes))
        said += curve_verdict(asdict(sizes.cmd), asdict(sizes.overshoot))
        data["curve"] = sizes.to_dict()
    return Output("\n\n".join([*parts, said.text]), {**said.data, "result": data})


def _curve_text(curve: "Curve") -> str:
    from circuitdisc.pages.tables import text_table
    from circuitdisc.wording import number

    def shown(value: Any) -> str:
        return "-" if value is None else number(value).replace("−", "-")

    title = f"faithfulness over size ({curve.metric}, {curve.ablation} ablation, {curve.n} {curve.split} examples)"
    figures = ("faithfulness", "low", "high", "random")
    points = [[str(row["share"]), str(row["edges"]), *(shown(row[name]) for name in figures)] for row in curve.table()]
    areas, notes = [], []
    for score in (curve.cpr, curve.cmd, curve.overshoot):
        controls = [value for value in score.controls if value is not None]
        random = sum(controls) / len(controls) if controls else None
        areas.append([score.name, *map(shown, (score.value, score.low, score.high, random))])
        notes += [f"{score.name}: {score.note}"] if score.note else []
    sizes = text_table(("share", "edges", *figures), points, "rrrrrr")
    return "\n\n".join([f"{title}\n\n{sizes}", text_table(("area", "value", *figures[1:]), areas, "lrrrr"), *notes])


FILE_JOB = Job(
    name="score --scores",
    summary="scores of edges that another tool has written",
    text="""How good are scores of edges that another tool has written? FILE is an object of edge name -> score (.json), a graph
of EAP-IG or of the MIB benchmark (.json, .pt), or a run's edge_scores.npz. Graphs are read as higher_helps and others as
lower_helps unless the file names its sign; sign= says otherwise. Prints the scores of the circuit of the best edges,
beside random circuits, and the faithfulness of circuits of ten sizes with the areas under that curve (CPR, CMD), on held-out
examples. Needs model= and task=. Writes nothing. `edges=sizes` leaves the single circuit out.""",
    config="scores_file",
)
