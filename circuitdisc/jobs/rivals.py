"""`circuitdisc rivals`: are there other circuits of a run's task that are as good?"""

from pathlib import Path
from typing import Any

from circuitdisc.jobs.certainty import measured, on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "rivals.partial.jsonl"


def measure(folder: str | Path, *, seed: int | None, memory: str | int | None, **settings: Any) -> Output:
    """Search rivals of a run's circuit, write rivals.json and the page; returns the table.

    Args:
        seed, memory: None: the run's own.
        settings: as of `rivals`: `n`, `margin`, `most_alike`, `n_random`, `confidence`, `progress`.
    """
    from circuitdisc.bound import read_own_edge_scores
    from circuitdisc.certainty.rivals import rivals
    from circuitdisc.jobs.pipeline import EDGE_SCORES, changed_run, search_cost

    run, circuit, config, model, task = changed_run(folder, {})
    own = dict(config["algorithm"])
    found_by = own.pop("name")

    def compute() -> Any:
        return rivals(
            model,
            task,
            circuit,
            found_by,
            ablation=dict(config["ablation"]),
            metric=config["metric"].get("name"),
            seed=config["seed"] if seed is None else seed,
            memory=config["memory"] if memory is None else memory,
            edge_scores=read_own_edge_scores(run.path(EDGE_SCORES), circuit),
            search=search_cost(run),
            journal=run.path(UNFINISHED),
            settings=own,
            **settings,
        )

    output = measured("rivals", run, circuit, config, model, task, compute)
    run.path(UNFINISHED).unlink(missing_ok=True)
    return output


JOB = Job(
    name="rivals",
    arguments=("RUN",),
    summary="other circuits of the run's task, and what all that are as good have in common",
    text="""Are there other circuits as good? Runs the search of RUN again, with its own settings, n times, and avoids the edges
of the run's circuit and of all tries before. Each try is judged on held-out examples beside the run's circuit. Prints which are
as good, what all of these have in common, and what it has cost; writes rivals.json into the run's folder and its page again.

  circuitdisc rivals RUN n=10""",
    config="rivals",
    by_ranks=True,
    recorded=True,
    work=on_run(UNFINISHED, measure),
)
