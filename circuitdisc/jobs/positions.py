"""`circuitdisc positions`: at which spans of a prompt a run's circuit needs its edges."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitdisc.jobs.certainty import measured, on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

UNFINISHED = "positions.partial.jsonl"
CIRCUIT = "positioned_circuit.json"


def measure(
    folder: str | Path,
    *,
    roles: Sequence[str] | str | None,
    checkpoints: Sequence[str] | str | None,
    seed: int | None = None,
    memory: str | int | None = None,
    **settings: Any,
) -> Output:
    """Search a run's positioned circuit, write positions.json, positioned_circuit.json and the page; returns the tables.

    Args:
        checkpoints: names or folders of models.
        seed, memory: None: the run's own.
        settings: as of `positions`.
    """
    from dataclasses import replace

    from circuitdisc.jobs.pipeline import changed_run, search_cost
    from circuitdisc.positioned.positions import positions

    run, circuit, config, model, task = changed_run(folder, {})
    unfinished, shown = run.path(UNFINISHED), {name: settings[name] for name in ("start", "keep", "ranking", "prune_first")}
    settings |= {"seed": config["seed"] if seed is None else seed, "memory": config["memory"] if memory is None else memory}
    settings |= {"ablation": dict(config["ablation"]), "metric": config["metric"].get("name"), "search": search_cost(run)}
    settings |= {"roles": [roles] if isinstance(roles, str | int) else roles}
    settings |= {"others": Checkpoints([checkpoints] if isinstance(checkpoints, str) else checkpoints or (), config)}
    came_from = replace(circuit.provenance, algorithm="positions", settings=shown, identity={})

    def compute() -> Any:
        result = positions(model, task, circuit, journal=unfinished, **settings)
        replace(result.circuit, provenance=came_from).save(run.path(CIRCUIT))
        return result

    output = measured("positions", run, circuit, config, model, task, compute)
    unfinished.unlink(missing_ok=True)
    return output


class Checkpoints(Mapping[str, tuple[Any, Any]]):
    """Models and their tasks by name, each loaded when it is asked for, since several may not fit in memory.

    Args:
        config: of the run, whose settings of model and task hold for all.
    """

    def __init__(self, names: Sequence[str], config: Mapping[str, Any]) -> None:
        self.names, self.config = tuple(dict.fromkeys(map(str, names))), config

    def __getitem__(self, name: str) -> tuple[Any, Any]:
        from circuitdisc.engine.selfcheck import load_model
        from circuitdisc.jobs.pipeline import build_task

        model = load_model(**{**self.config["model"], "name": name})
        return model, build_task(model, self.config)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


JOB = Job(
    name="positions",
    arguments=("RUN",),
    summary="at which positions of a prompt, by role, the run's circuit needs its edges",
    text="""Where in the prompt does each edge count? Splits every prompt into spans by the roles of its task, and searches the
edges at spans that the circuit of RUN (start=graph: the model) needs, each decision by an exact run. Compares what it finds
with the run's circuit, with circuits of the same size that have no positions, and with random ones. Prints the tables, writes
positions.json and positioned_circuit.json into the run's folder and its page again.

  circuitdisc positions RUN roles=[s2,end] checkpoints=[multitask/tuned]""",
    config="positions",
    lists=("roles", "checkpoints"),
    recorded=True,
    work=on_run(UNFINISHED, measure),
)
