"""`circuitdisc certify`: which edges of a run's circuit stay whatever few search examples are deleted."""

from pathlib import Path

from circuitdisc.jobs.certainty import on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "certify.partial.jsonl"


def certify_run(
    folder: str | Path,
    *,
    delete: float = 0.2,
    n: int | None = None,
    confidence: float = 0.95,
    rerun: bool = False,
    seed: int | None = None,
    memory: str | int | None = None,
    progress: bool = True,
) -> str:
    """Certify the edges of a run's search, write certify.json and the page; returns the table.

    Args:
        seed, memory: None: the run's own.
    """
    from circuitdisc.bound import KEY, check_written, identity_of_scores
    from circuitdisc.jobs.pipeline import CERTIFICATE, changed_run, write_page
    from circuitdisc.pages.certify import certificate_part, certificate_verdict
    from circuitdisc.pages.tables import text_table
    from circuitdisc.pages.verdict import Verdict, as_sentences, plain_text
    from circuitdisc.scoring.certify import certify

    run, circuit, config, model, task = changed_run(folder, {})
    identity = identity_of_scores(config, model, task, circuit)
    check_written(run.path(CERTIFICATE), identity, ("weights", "examples"))
    algorithm, unfinished = dict(config["algorithm"]), run.path(UNFINISHED)
    found = certify(
        model,
        task,
        algorithm.pop("name"),
        delete=delete,
        n=n,
        confidence=confidence,
        rerun=rerun,
        seed=config["seed"] if seed is None else seed,
        journal=unfinished,  # killed, the same command goes on
        progress=progress,
        ablation=dict(config["ablation"]),
        metric=config["metric"].get("name"),
        memory=config["memory"] if memory is None else memory,
        allow_chance=config["allow_chance"],
        **algorithm,
    )
    record = {**found.to_dict(), KEY: identity.to_dict()}
    part = certificate_part(record, circuit)
    run.write(CERTIFICATE, record)
    unfinished.unlink(missing_ok=True)
    said = certificate_verdict(record, circuit) + Verdict((), as_sentences(circuit.provenance.notes))
    page, table = write_page(run.folder), plain_text(text_table(part.headers, part.rows).replace("–", "-"))
    text = "\n\n".join([table, plain_text("\n".join(part.lines)), said.text, f"report  {page}"])
    return Output(text, {"folder": run.folder, "page": page, **said.data, "result": record})


JOB = Job(
    name="certify",
    arguments=("RUN",),
    summary="which edges stay in the circuit, or out of it, when search examples are deleted",
    text="""Runs the search of RUN on many random subsets of its search examples, and bounds for each edge how often it is in
the circuit. An edge that most subsets have for certain stays in the majority when up to so many examples are deleted. Scored
attributions run once, whatever n is. Writes certify.json into the run's folder and its page again.""",
    config="certify",
    by_ranks=True,
    recorded=True,
    spreads=True,
    work=on_run(UNFINISHED, certify_run),
)
