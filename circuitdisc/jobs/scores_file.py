"""The command line of `circuitdisc score --scores FILE`: edge scores that another tool has written, judged without a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadFile, BadSetting, BadTask, UnknownName
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads

if TYPE_CHECKING:
    from circuitdisc.scoring.curves import Curve

OPTION, SIZES = "--scores", "sizes"
GROUPS = ("model", "task", "ablation", "metric", "scoring")
COMMON = ("seed", "memory", "threads", "progress", "allow_chance")
WHAT = """How good are scores of edges that another tool has written? FILE is an object of edge name -> score (.json), a graph
of EAP-IG or of the MIB benchmark (.json, .pt), or a run's edge_scores.npz. Graphs are read as higher_helps and others as
lower_helps unless the file names its sign; sign= says otherwise. Prints the scores of the circuit of the best edges,
beside random circuits, and the faithfulness of circuits of ten sizes with the areas under that curve (CPR, CMD), on held-out
examples. Needs model= and task=. Writes nothing. `edges=sizes` leaves the single circuit out."""


def scores_file_command(args: Sequence[str]) -> str:
    """`circuitdisc score` with these arguments, `--scores FILE` among them; returns what it prints.

    Raises:
        CircuitdiscError: bad input.
    """
    if asks_for_help(args):
        return help_text(f"score {OPTION} FILE", WHAT, "scores_file", groups=GROUPS, common=COMMON)
    path, rest = _file_and_rest(args)
    named = {arg.partition("=")[0] for arg in rest}
    for group, example in (("model", "model=gpt2"), ("task", "task=ioi, or task=prompts.jsonl")):
        if not {group, f"{group}.name"} & named:
            error = BadTask if group == "task" else BadSetting
            raise error(f"no {group} is named: the file says which edges count, not for what; give {example}")
    settings = parse(f"score {OPTION}", "scores_file", rest, groups=GROUPS, common=COMMON)
    set_threads(settings["threads"])
    return measure(path, settings)


def measure(path: Path, settings: Mapping[str, Any]) -> str:
    """Choose a circuit by the scores in a file, and judge it and the circuits of ten sizes; returns the tables.

    Args:
        settings: as `parse` gives them.
    """
    from circuitdisc.discovery.registry import discover
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.jobs.discover import build_task, score_circuit
    from circuitdisc.pages.scores.curve import curve_verdict
    from circuitdisc.pages.tables import scores_alone
    from circuitdisc.pages.verdict import Verdict, as_sentences, verdict
    from circuitdisc.scoring.curves import curve

    own = dict(settings["settings"])
    curve_alone = own["edges"] == SIZES
    own["edges"] = None if curve_alone else own["edges"]
    model = load_model(**settings["model"])
    task = build_task(model, settings)
    asked: dict[str, Any] = {"ablation": dict(settings["ablation"]), "metric": settings["metric"].get("name")}
    asked |= {name: settings[name] for name in ("seed", "memory", "progress")}
    found = discover(model, task, "from_file", path=str(path), allow_chance=settings["allow_chance"], **asked, **own)
    parts, said = [], Verdict((), as_sentences(found.circuit.provenance.notes))
    if not curve_alone:
        scores = score_circuit(model, task, found.circuit, settings, settings["progress"])
        parts.append(scores_alone(scores))
        said += verdict(scores, found.circuit)
    if curve_alone or found.edge_scores is not None:
        sizes = curve(model, task, found, grow=own["grow"], by=own["by"], **asked)
        parts.append(_curve_text(sizes))
        said += curve_verdict(asdict(sizes.cmd), asdict(sizes.overshoot))
    return "\n\n".join([*parts, said.text])


def _file_and_rest(args: Sequence[str]) -> tuple[Path, list[str]]:
    """The file after `--scores` (or `--scores=`), and the other arguments."""
    rest = list(args)
    at = next(index for index, arg in enumerate(rest) if arg.partition("=")[0] == OPTION)
    option, equals, name = rest.pop(at).partition("=")
    if not equals:
        name = rest.pop(at) if at < len(rest) and not _is_setting(rest[at]) else ""
    if not name:
        raise BadFile(f"which file? `circuitdisc score {option} FILE` takes a file of edge scores, .json or .npz")
    path = Path(name)
    if not path.is_file():
        raise BadFile(f"cannot read {path}: there is no such file")
    for arg in rest:
        if arg.startswith("-"):
            raise UnknownName("option", arg, [OPTION, "--help"], "Settings are written key=value.")
        if not _is_setting(arg):
            raise BadSetting(f"'{arg}' is not a setting: write key=value; `{OPTION} FILE` scores a file, not a run's folder")
    return path, rest


def _is_setting(arg: str) -> bool:
    return "=" in arg and not Path(arg).is_file()


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
