"""The work of `circuitdisc plan`: what a run will count, and take in memory and in time, before it is run.

The words after it are those of the command that is planned: `plan discover ...` (or `plan ...` alone), `plan transfer ...`,
`plan score RUN ...`. Nothing is written unless `out=` names a folder.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.files import size_words, write_json
from circuitdisc.jobs.config import common_keys, compose, groups_of, own_keys, plain, read_overrides
from circuitdisc.jobs.discover import JOB as DISCOVER
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.pipeline import build_task, changed_run
from circuitdisc.jobs.score import JOB as SCORE
from circuitdisc.jobs.score import changes_of_call
from circuitdisc.jobs.transfer import JOB as TRANSFER
from circuitdisc.models.model import Model
from circuitdisc.pages.description import Description, Section, description_text, write_description
from circuitdisc.pages.verdict import Verdict, as_sentences
from circuitdisc.planning.models import open_model, prompts_of_length
from circuitdisc.planning.plan import plan
from circuitdisc.planning.ranks import times
from circuitdisc.planning.result import Fit, PlannedPart, RunPlan, in_words
from circuitdisc.results import Row
from circuitdisc.runs import check_free, stoppable, versions, workspace
from circuitdisc.tasks.base import Task
from circuitdisc.wording import duration, percent

PLAN, UNKNOWN = "plan", "not known"
PLANNED = {"discover": DISCOVER, "transfer": TRANSFER, "score": SCORE}


def work(call: Call) -> str:
    name = call.args[0] if call.args and call.args[0] in PLANNED else "discover"
    words = list(call.args[call.args[:1] == (name,) :])
    if word := next((word for word in words if "=" not in word), None) if name != "score" else None:
        raise UnknownName("command to plan", word, PLANNED, "Settings are written key=value.")
    own, theirs = _parted(words, PLANNED[name])
    settings = plain(compose(read_overrides(own, PLAN, "setting of plan"), PLAN))
    out = settings.pop("out")
    if out is not None and not isinstance(out, str):
        raise BadSetting("out= is not the name of a folder: write it as out='...'")
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else _taken(call, folder):
        planned = PLANNERS[name](Call(PLANNED[name], tuple(theirs)), settings)
        description = describe_plan(planned)
        text = f"{planned.model}, task {planned.task}\n\n{description_text(description)}"
        data = {**description.said.data, "result": planned.to_dict()}
        if folder is None:
            return Output(text, data)
        return Output(f"{text}\n\n{_write(call, folder, planned, description)}", {"folder": folder, **data})


@contextmanager
def _taken(call: Call, folder: Path) -> Iterator[None]:
    """The folder of the plan, seen to be free and writable before anything is measured."""
    check_free(folder)
    with stoppable(call.command), workspace(folder):
        yield


def _parted(words: list[str], job: Job) -> tuple[list[str], list[str]]:
    """The words that are settings of the plan, and those of the command that is planned.

    Raises:
        UnknownName: a key belongs to neither.
    """
    assert job.config is not None, "what can be planned has settings"
    own = own_keys(PLAN)
    known = {*own, *own_keys(job.config), *common_keys(job.config), *groups_of(job.config)}
    parted: tuple[list[str], list[str]] = ([], [])
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if "=" in word and "." not in key and key not in known:
            raise UnknownName("setting of plan", key, known)
        parted[key not in own].append(word)
    return parted


def _write(call: Call, folder: Path, planned: RunPlan, description: Description) -> str:
    """The plan as a file and a page."""
    record = {"command": call.command, "started": call.started.isoformat(timespec="seconds"), "versions": versions()}
    write_json(folder / "plan.json", {**planned.to_dict(), **record})
    page, subject = folder / "report.html", f"{planned.model}, task {planned.task}"
    write_description(page, description, heading="Plan of a run", subject=subject, settings=record)
    return f"folder  {folder}\npage    {page}"


# --- what is planned ------------------------------------------------------------------------------------------------------


def _discover(call: Call, own: dict[str, Any]) -> RunPlan:
    settings = call.settings
    model = _model(settings["model"], own)
    return _search(model, settings, own, settings["scoring"].get("n_random", "auto"), settings["allow_chance"])


def _search(model: Model, settings: Mapping[str, Any], own: dict[str, Any], n_random: Any, allow_chance: bool) -> RunPlan:
    task, algorithm = _task(model, settings, own), dict(settings["algorithm"])
    return plan(
        model, task, algorithm.pop("name"), n_random=n_random, allow_chance=allow_chance, **_given(settings, own), **algorithm
    )


def _transfer(call: Call, own: dict[str, Any]) -> RunPlan:
    settings, asked = call.settings, call.own
    if {"model", "model.name"} & call.given or not asked["checkpoints"]:
        raise BadSetting("plan transfer takes checkpoints=[A,B,...] as `circuitdisc transfer` does, and no model=")
    names = asked["checkpoints"] if isinstance(asked["checkpoints"], list) else [asked["checkpoints"]]
    if len(names) < 2:  # the folder of a ladder, or one name
        from circuitdisc.checkpoints.listing import read_checkpoints

        names = read_checkpoints(names, least=2, what="transfer")
    model = _model({**call.model_settings, "name": names[0]}, own)
    one = _search(model, settings, own, asked["n_random"], True)
    joint = asked["joint"] if isinstance(asked["joint"], list) else names if asked["joint"] else []
    donor = asked["donor"] or []
    donors = len(names) * (len(names) - 1) if donor in ("all", ["all"]) else len([donor] if isinstance(donor, str) else donor)
    given = asked["circuits"] or []
    rows = len([given] if isinstance(given, str) else given) or len(names)
    searches = (0 if given else len(names)) + len(joint) + donors
    note = f"measured and counted on {names[0]}, and taken {searches} times for searches and {rows + bool(joint) + donors} x "
    whole = times(one, searches, (rows + bool(joint) + donors) * len(names))
    return replace(whole, notes=(*whole.notes, f"{note}{len(names)} times for cells"))


def _score(call: Call, own: dict[str, Any]) -> RunPlan:
    folder = call.run_folder()
    if own["length"] is not None:
        raise BadSetting("length= is of plans of searches: `plan score RUN` scores the run's own prompts")
    changes, _ = changes_of_call(call, folder)
    _, circuit, config, model, task = changed_run(folder, changes or {"progress": False})  # as if changed: nothing is written
    scoring = config["scoring"]
    return plan(model, task, None, circuit=circuit, n_random=scoring.get("n_random", "auto"), **_given(config, own))


PLANNERS: dict[str, Callable[[Call, dict[str, Any]], RunPlan]] = {
    "discover": _discover, "transfer": _transfer, "score": _score,
}  # fmt: skip


def _model(settings: Mapping[str, Any], own: Mapping[str, Any]) -> Model:
    given = {key: value for key, value in settings.items() if key != "name"}
    return open_model(settings["name"], measure=bool(own["measure"]) and own["speed"] is None, **given)


def _task(model: Model, settings: Mapping[str, Any], own: Mapping[str, Any]) -> Task:
    if own["length"] is None:
        return build_task(model, dict(settings))
    n = settings["task"]["n"] or 200
    return prompts_of_length(model, n, settings["task"]["n_heldout"] or n, own["length"], settings["seed"])


def _given(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    device = str(settings["model"].get("device", "cpu")).partition(":")[0]
    shared = {"seed": settings["seed"], "memory": settings["memory"], "metric": settings["metric"].get("name")}
    return {**shared, "ablation": settings["ablation"], "device": device, **{k: v for k, v in own.items() if k != "length"}}


# --- what it says ---------------------------------------------------------------------------------------------------------


def describe_plan(planned: RunPlan) -> Description:
    """A plan in words and tables."""
    weights = f"{planned.parameters:,} weights in {planned.dtype} take {size_words(planned.weights)}"
    if planned.peak is not None:
        activations = f"with activations a rank takes {size_words(planned.peak)} at most, beside Python and its libraries"
    else:
        unknown = " and ".join(part.name for part in planned.parts if part.peak is None)
        activations = f"how much {unknown} takes beside them is not known"
    lead = [f"{weights}; {activations} (memory={size_words(planned.budget)})."]
    if planned.seconds is not None:
        basis = f"measured for {duration(planned.measured)}" if planned.measured else f"by {planned.speed:g} GFLOP/s"
        lead.append(f"Expected on one rank: {duration(planned.seconds)}. This is an estimate ({basis}).")
    else:
        lead.append("No time: the weights are not here, or nothing was to be run; speed=GFLOP/s gives one from the shapes.")
    lead += map(_fit_words, planned.fits)
    why = [f"{part.name}: the range depends on {part.why}." for part in planned.parts if part.why]
    time = [f"Time of {part.name}: {part.basis}." for part in planned.parts if part.basis and part.name != "checks"]
    sections = [Section("Parts", [_row(part) for part in planned.parts], _note(planned))]
    if len(planned.ranks) > 1:
        note = (
            "Examples are dealt out; what ranks tell each other, and what does not shrink with their number, takes no time. "
            "Split: the ranks hold one model together, by heads, and each runs all examples"
        )
        sections.append(Section("Ranks", [_of_ranks(planned, at) for at in range(len(planned.ranks))], note))
    note = "With the least activations: one example or candidate at a time, of searches with all examples in memory"
    sections.append(Section("What fits", _of_fits(planned), note))
    return Description(Verdict(tuple(lead), as_sentences((*why, *time, *planned.notes))), tuple(sections))


def _fit_words(fit: Fit) -> str:
    what = f"This machine ({size_words(fit.size)})" if fit.where == "this machine" else f"A memory of {size_words(fit.size)}"
    if fit.fits is None:
        return f"Whether {what[0].lower()}{what[1:]} has room for it is not known."
    return f"{what} {'has' if fit.fits else 'does not have'} room for it."


def _note(planned: RunPlan) -> str:
    plain = f"One plain forward over the {planned.n_train} search examples is {planned.operations / 1e9:,.3g} GFLOP"
    if planned.forward_seconds is not None and planned.speed is not None:
        plain += f", {duration(planned.forward_seconds)} at {planned.speed:,.3g} GFLOP/s"
    return f"Passes are over a part's examples. {plain}"


def _row(part: PlannedPart) -> Row:
    return {
        "part": part.name if part.times == 1 else f"{part.name} x {part.times}",
        "n": part.n_examples,
        "forward": in_words(part.model_runs),
        "backward": in_words(part.backward_runs),
        "circuits": in_words(part.circuit_runs),
        "candidates": in_words(part.candidates),
        "node evaluations": in_words(part.node_evaluations),
        "usual, plain forwards": None if part.usual is None else in_words((part.usual, part.usual)),
        "memory": _size(part.peak),
        "time": _time(part),
    }


def _time(part: PlannedPart) -> str | None:
    if part.seconds is None:
        return None
    if part.basis.startswith("within"):
        return part.basis
    return f"{'' if 'to its end' in part.basis or 'to their end' in part.basis else 'about '}{duration(part.seconds)}"


def _of_ranks(planned: RunPlan, at: int) -> Row:
    ranks = planned.ranks[at]
    return {
        "ranks": ranks.ranks,
        "work of the busiest": percent(ranks.work),
        "time, about": None if ranks.seconds is None else duration(ranks.seconds),
        "memory a rank": _size(ranks.memory),
        "model split": None if ranks.split is None else size_words(ranks.split),
    }


def _of_fits(planned: RunPlan) -> list[Row]:
    return [
        {
            "memory": size_words(fit.size),
            "of": fit.where,
            "this plan": UNKNOWN if fit.fits is None else "fits" if fit.fits else "does not fit",
            "largest model of this width": _room(fit.layers, f"{fit.layers or 0:,} layers, {fit.parameters or 0:,} weights"),
            "longest prompts": _room(fit.tokens, f"{fit.tokens or 0:,} tokens"),
            "most search examples": UNKNOWN if fit.examples is None else fit.examples,
        }
        for fit in planned.fits
    ]


def _size(n_bytes: int | None) -> str:
    return UNKNOWN if n_bytes is None else size_words(n_bytes)


def _room(number: int | None, words: str) -> str:
    return UNKNOWN if number is None else words if number else "none"
