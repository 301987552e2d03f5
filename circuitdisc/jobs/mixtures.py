"""`circuitdisc mixtures`: does a run's circuit hide several mechanisms?"""

from pathlib import Path
from typing import Any

from circuitdisc.jobs.certainty import measured, on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "mixtures.partial.jsonl"


def measure(folder: str | Path, *, seed: int | None = None, memory: str | int | None = None, **settings: Any) -> Output:
    """Cluster a run's examples and compare the clusters' circuits, write mixtures.json and the page; returns the table.

    Args:
        seed, memory: None: the run's own.
        settings: as of `mixtures`.
    """
    from circuitdisc.certainty.mixtures import mixtures
    from circuitdisc.jobs.pipeline import changed_run, search_cost

    run, circuit, config, model, task = changed_run(folder, {})
    own = dict(config["algorithm"])
    name, unfinished = own.pop("name"), run.path(UNFINISHED)
    settings |= {"seed": config["seed"] if seed is None else seed, "memory": config["memory"] if memory is None else memory}
    settings |= {"ablation": dict(config["ablation"]), "metric": config["metric"].get("name"), "search": search_cost(run)}

    def compute() -> Any:
        return mixtures(model, task, circuit, name, settings=own, journal=unfinished, **settings)

    output = measured("mixtures", run, circuit, config, model, task, compute)
    unfinished.unlink(missing_ok=True)
    return output


JOB = Job(
    name="mixtures",
    arguments=("RUN",),
    summary="whether a run's circuit hides several mechanisms: clusters of its examples, and their circuits",
    text="""Is the task done in one way, or do its examples need circuits of their own? Scores the edges of every search
example, and finds in how many clusters these scores fall, with one as an answer. With several, runs the search of RUN again on
each cluster, and on random splits of the same sizes, and scores every circuit on the held-out examples of every cluster. Prints
that table, examples of each cluster and the cost, writes mixtures.json into the run's folder and its page again.""",
    config="mixtures",
    by_ranks=True,
    recorded=True,
    work=on_run(UNFINISHED, measure),
)
