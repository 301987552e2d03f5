"""`circuitdisc specificity`: a run's circuit on other tasks, other runs' circuits on its own, and its worst cases."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadRun, CircuitdiscError, CircuitdiscWarning
from circuitdisc.jobs.certainty import measured, on_run
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.output import Output

if TYPE_CHECKING:
    from circuitdisc.circuit import Circuit
    from circuitdisc.models.model import Model
    from circuitdisc.runs import Run
    from circuitdisc.tasks.base import Task

UNFINISHED = "specificity.partial.jsonl"


def measure(
    folder: str | Path,
    *,
    tasks: Sequence[str] | str | None,
    runs: Sequence[str] | str | None,
    texts: str | None,
    n: int,
    n_heldout: int,
    seed: int | None,
    memory: str | int | None,
    **settings: Any,
) -> Output:
    """Measure a run's circuit elsewhere, write specificity.json and the page; returns the tables.

    Args:
        tasks: names, or files of one's own.
        runs: folders of runs of the same model.
        texts: a file with a text a line.
        n, n_heldout: examples of each task that is named: those that means are of, and those that are measured.
        seed, memory: None: the run's own.
        settings: as of `specificity`: `n_random`, `max_tokens`, `confidence`, `progress`.
    """
    from dataclasses import replace

    from circuitdisc.certainty.specificity import specificity
    from circuitdisc.files import read_text
    from circuitdisc.jobs.pipeline import changed_run, search_cost

    run, circuit, config, model, task = changed_run(folder, {})
    lines = [] if texts is None else [line.strip() for line in read_text(Path(texts)).splitlines() if line.strip()]
    named = [tasks] if isinstance(tasks, str) else tasks or ()
    drawn_with: int = config["seed"] if seed is None else seed
    others, left_out = _tasks(model, named, n, n_heldout, drawn_with)
    folders = [runs] if isinstance(runs, str) else runs or ()

    def compute() -> Any:
        result = specificity(
            model,
            task,
            circuit,
            others=others,
            runs={Path(each).resolve().name: _other(each, run, model) for each in folders},
            texts=lines if texts is not None else None,
            ablation=dict(config["ablation"]),
            metric=config["metric"].get("name"),
            seed=drawn_with,
            memory=config["memory"] if memory is None else memory,
            search=search_cost(run),
            journal=run.path(UNFINISHED),
            **settings,
        )
        return replace(result, notes=(*left_out, *result.notes))

    output = measured("specificity", run, circuit, config, model, task, compute)
    run.path(UNFINISHED).unlink(missing_ok=True)
    return output


def _tasks(model: "Model", names: Sequence[str], n: int, n_heldout: int, seed: int) -> tuple[dict[str, "Task"], list[str]]:
    """The tasks that fit the model's tokenizer, and of the others why not.

    Raises:
        UnknownName: there is no such task.
    """
    import warnings

    from circuitdisc.tasks import load_task
    from circuitdisc.tasks.registry import REGISTRY

    tasks, left_out = dict[str, "Task"](), list[str]()
    for name in names:
        sizes: dict[str, Any] = {} if Path(name).is_file() else {"n": n, "n_heldout": n_heldout}
        if sizes:
            REGISTRY.get(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CircuitdiscWarning)
                tasks[Path(name).stem] = load_task(name, model, seed=seed, **sizes)
        except CircuitdiscError as error:
            left_out.append(f"{name}: {str(error).splitlines()[0]}")
    return tasks, left_out


def _other(folder: str, run: "Run", model: "Model") -> "tuple[Circuit, Task]":
    """Another run's circuit and task.

    Raises:
        BadRun: it is of another model, or the same run.
    """
    from circuitdisc.bound import check_circuit
    from circuitdisc.jobs.pipeline import CIRCUIT, build_task, read_circuit
    from circuitdisc.schemas import RunConfig
    from circuitdisc.sections import check_sections, open_run

    other = open_run(folder)
    if other.folder.resolve() == run.folder.resolve():
        raise BadRun(f"runs={folder} is the run itself: name other runs of its model")
    check_sections(other.config, RunConfig)
    if other.config["model"] != run.config["model"]:
        raise BadRun(
            f"{folder} is a run of {other.config['model']['name']}, and {run.folder} one of {run.config['model']['name']} (or "
            "both are loaded in other ways): circuits are told apart within a model"
        )
    circuit, task = read_circuit(other), build_task(model, other.config)
    check_circuit(other.path(CIRCUIT), circuit, other.config, model, task)
    return circuit, task


JOB = Job(
    name="specificity",
    arguments=("RUN",),
    summary="the run's circuit on other tasks, other runs' circuits on its own, and the examples on which it is worst",
    text="""Is the circuit its task's own? Measures the circuit of RUN on other tasks, circuits of other runs of the same model
on its own, what cutting each circuit's edges alone takes of each task beside random circuits, the held-out examples on which
circuit and model differ most, and, with texts=, the next-token distribution on general text. Prints tables, writes
specificity.json into the run's folder and its page again.

  circuitdisc specificity RUN tasks=[ioi,greater_than] runs=[runs/other] texts=texts.txt""",
    config="specificity",
    lists=("tasks", "runs"),
    by_ranks=True,
    recorded=True,
    work=on_run(UNFINISHED, measure),
)
