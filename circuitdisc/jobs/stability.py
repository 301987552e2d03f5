"""`circuitdisc stability`: a run's search again on bootstrap samples of its examples."""

from pathlib import Path

from circuitdisc.jobs.certainty import on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "stability.partial.jsonl"


def measure(
    folder: str | Path,
    *,
    n_samples: int = 100,
    vary_seed: bool = False,
    confidence: float = 0.95,
    seed: int | None = None,
    memory: str | int | None = None,
    progress: bool = True,
) -> str:
    """Find the circuit again on each sample, write stability.json and the page; returns the table.

    Args:
        seed, memory: None: the run's own.
    """
    from circuitdisc.bound import KEY, check_written, identity_of_scores
    from circuitdisc.checks import bounds_of
    from circuitdisc.jobs.pipeline import STABILITY, changed_run, write_page
    from circuitdisc.pages.stability import stability_part, stability_verdict
    from circuitdisc.pages.tables import text_table
    from circuitdisc.pages.verdict import Verdict, as_sentences, plain_text
    from circuitdisc.scoring.stability import by_chance, stability

    bounds_of(stability)["n_bootstrap"].check("n_samples", n_samples)  # by the name that was typed
    run, circuit, config, model, task = changed_run(folder, {})
    identity = identity_of_scores(config, model, task, circuit)
    check_written(run.path(STABILITY), identity, ("weights", "examples"))
    algorithm = dict(config["algorithm"])
    drawn_with: int = config["seed"] if seed is None else seed
    unfinished = run.path(UNFINISHED)
    found = stability(
        model,
        task,
        algorithm.pop("name"),
        n_bootstrap=n_samples,
        vary_seed=vary_seed,
        confidence=confidence,
        seed=drawn_with,
        journal=unfinished,  # killed, the same command goes on
        progress=progress,
        ablation=dict(config["ablation"]),
        metric=config["metric"].get("name"),
        memory=config["memory"] if memory is None else memory,
        allow_chance=config["allow_chance"],
        **algorithm,
    )
    record = {**found.to_dict(), "random": by_chance(circuit, seed=drawn_with), KEY: identity.to_dict()}
    part = stability_part(record, circuit)
    run.write(STABILITY, record)
    unfinished.unlink(missing_ok=True)
    table = plain_text(text_table(part.headers, part.rows).replace("–", "-"))
    captions = "\n".join(caption for *_, caption in part.figures)
    said = stability_verdict(record, circuit) + Verdict((), as_sentences(circuit.provenance.notes))
    page = write_page(run.folder)
    text = "\n\n".join([table, *([captions] if captions else []), said.text, f"report  {page}"])
    return Output(text, {"folder": run.folder, "page": page, **said.data, "result": record})


JOB = Job(
    name="stability",
    arguments=("RUN",),
    summary="the run's search again on bootstrap samples of its examples",
    text="""Would other examples have given the same circuit? Runs the search of RUN again, with its own settings, on bootstrap
samples of its search examples. Prints how alike the circuits are, writes stability.json into the run's folder and its page
again.""",
    config="stability",
    by_ranks=True,
    recorded=True,
    spreads=True,
    work=on_run(UNFINISHED, measure),
)
