"""The command line of `circuitdisc stability`: a run's search again on bootstrap samples of its examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads

UNFINISHED = "stability.partial.jsonl"
COMMON = ("seed", "memory", "threads", "progress")
WHAT = """Would other examples have given the same circuit? Runs the search of RUN again, with its own settings, on bootstrap
samples of its search examples. Prints how alike the circuits are, writes stability.json into the run's folder and its page
again. Seed and memory are the run's own unless given."""


def stability_command(args: Sequence[str]) -> str:
    """`circuitdisc stability` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. The folder is left as it was.
    """
    if asks_for_help(args):
        return help_text("stability RUN", WHAT, "stability", groups=(), common=COMMON)
    if not args or args[0].startswith("-") or ("=" in args[0] and not Path(args[0]).is_dir()):
        raise BadRun("which run? `circuitdisc stability RUN` takes the folder of a run")
    given = {arg.partition("=")[0] for arg in args[1:]}
    settings = parse("stability", "stability", args[1:], groups=(), common=COMMON)
    set_threads(settings["threads"])
    from circuitdisc.jobs.discover import writing_run
    from circuitdisc.runs import stoppable

    def kept() -> bool:
        return (Path(args[0]) / UNFINISHED).exists()

    unchanged = {name for name in ("seed", "memory") if name not in given}  # as the run had them
    with stoppable(["circuitdisc", "stability", *args], kept), writing_run(args[0]):
        return measure(args[0], {name: value for name, value in settings.items() if name not in unchanged})


def measure(folder: str | Path, settings: Mapping[str, Any]) -> str:
    """Find the circuit again on each sample, write stability.json and the page; returns the table.

    Args:
        settings: as `parse` gives them.
    """
    from circuitdisc.bound import KEY, check_written, identity_of_scores
    from circuitdisc.jobs.discover import STABILITY, changed_run, write_page
    from circuitdisc.pages.stability import stability_part, stability_verdict
    from circuitdisc.pages.tables import text_table
    from circuitdisc.pages.verdict import Verdict, as_sentences, plain_text
    from circuitdisc.scoring.stability import by_chance, stability

    run, circuit, config, model, task = changed_run(folder, {})
    identity = identity_of_scores(config, model, task, circuit)
    check_written(run.path(STABILITY), identity, ("weights", "examples"))
    own, algorithm = settings["settings"], dict(config["algorithm"])
    seed = settings.get("seed", config["seed"])
    unfinished = run.path(UNFINISHED)
    found = stability(
        model,
        task,
        algorithm.pop("name"),
        n_bootstrap=own["n_samples"],
        vary_seed=own["vary_seed"],
        confidence=own["confidence"],
        seed=seed,
        journal=unfinished,  # killed, the same command goes on
        progress=settings["progress"],
        ablation=dict(config["ablation"]),
        metric=config["metric"].get("name"),
        memory=settings.get("memory", config["memory"]),
        allow_chance=config["allow_chance"],
        **algorithm,
    )
    record = {**found.to_dict(), "random": by_chance(circuit, seed=seed), KEY: identity.to_dict()}
    part = stability_part(record, circuit)
    run.write(STABILITY, record)
    unfinished.unlink(missing_ok=True)
    table = plain_text(text_table(part.headers, part.rows).replace("–", "-"))
    captions = "\n".join(caption for *_, caption in part.figures)
    said = stability_verdict(record, circuit) + Verdict((), as_sentences(circuit.provenance.notes))
    return "\n\n".join([table, *([captions] if captions else []), said.text, f"report  {write_page(run.folder)}"])
