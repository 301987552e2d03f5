"""`circuitdisc backups`: which parts of a run's circuit back each other up, and which heads outside it back it up."""

from pathlib import Path
from typing import Any

from circuitdisc.jobs.certainty import measured, on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "backups.partial.jsonl"


def measure(folder: str | Path, *, seed: int | None = None, memory: str | int | None = None, **settings: Any) -> Output:
    """Find backups in a run's circuit, write backups.json and the page; returns the table.

    Args:
        seed, memory: None: the run's own.
        settings: as of `backups`.
    """
    from circuitdisc.certainty.backups import backups
    from circuitdisc.jobs.pipeline import changed_run, search_cost

    run, circuit, config, model, task = changed_run(folder, {})
    settings |= {"seed": config["seed"] if seed is None else seed, "memory": config["memory"] if memory is None else memory}
    settings |= {"ablation": dict(config["ablation"]), "metric": config["metric"].get("name"), "search": search_cost(run)}
    unfinished = run.path(UNFINISHED)

    def compute() -> Any:
        return backups(model, task, circuit, journal=unfinished, **settings)

    output = measured("backups", run, circuit, config, model, task, compute)
    unfinished.unlink(missing_ok=True)
    return output


JOB = Job(
    name="backups",
    arguments=("RUN",),
    summary="which parts of a run's circuit back each other up, so that ablating one alone shows little",
    text="""Does ablating one part at a time show what it does? Takes pairs of heads (by=edge: of edges) out of the model, and
each head outside the circuit together with all of the circuit's. Two back each other up if the effect of either grows once the
other is gone. Pairs are chosen on the search examples and judged on held-out ones, beside random pairs. Prints the pairs and
the largest gaps between circuit and model without a pair, writes backups.json into the run's folder and its page again.""",
    config="backups",
    by_ranks=True,
    recorded=True,
    work=on_run(UNFINISHED, measure),
)
