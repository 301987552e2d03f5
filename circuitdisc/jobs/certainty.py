"""What commands share that use a run's circuit: the folder that they write into; and, of `rivals`, `specificity`, `backups`,
`mixtures` and `positions`, their file beside the run, its part of the page, and the table.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from circuitdisc.jobs.job import Call
from circuitdisc.jobs.output import Output

if TYPE_CHECKING:
    from circuitdisc.circuit import Circuit
    from circuitdisc.models.model import Model
    from circuitdisc.runs import Run
    from circuitdisc.tasks.base import Task


def on_run(unfinished: str, measure: Callable[..., Any]) -> Callable[[Call], Any]:
    """The work of a command on a run's folder, which it alone writes; after Ctrl-C it is said whether anything was kept.

    Args:
        unfinished: name of the journal of what is not finished.
        measure: (the folder, settings by name) -> what is printed.
    """

    def work(call: Call) -> Any:
        folder, settings = call.run_folder(), call.read(call.args[1:])
        from circuitdisc.jobs.pipeline import writing_run
        from circuitdisc.runs import stoppable

        with stoppable(call.command, (folder / unfinished).exists), writing_run(folder):
            return measure(folder, **{name: value for name, value in settings.items() if name != "threads"})

    return work


def measured(
    name: str,
    run: "Run",
    circuit: "Circuit",
    config: Mapping[str, Any],
    model: "Model",
    task: "Task",
    compute: Callable[[], Any],
) -> Output:
    """Compute a result of a run, write NAME.json and the page; returns what is printed.

    Raises:
        BadRun: the file belongs to other weights or examples.
    """
    from circuitdisc.bound import KEY, check_written, identity_of_scores
    from circuitdisc.jobs.pipeline import write_page
    from circuitdisc.pages.certainty import SHOWN
    from circuitdisc.pages.tables import text_table
    from circuitdisc.pages.verdict import Verdict, as_sentences, plain_text

    identity = identity_of_scores(config, model, task, circuit)
    path = run.path(f"{name}.json")
    check_written(path, identity, ("weights", "examples"))
    record = {**compute().to_dict(), KEY: identity.to_dict()}
    parts, said = SHOWN[name].of(name, record)
    run.write(path.name, record)
    said = said + Verdict((), as_sentences(circuit.provenance.notes))
    page, text = write_page(run.folder), list[str]()
    for part in parts:
        table = text_table(part.headers, part.rows)
        text += ["\n".join([part.title, *([part.of] if part.of else [])]), table, "\n".join([*part.lines, part.caption])]
    text = [plain_text(each.replace("–", "-")) for each in text] + [said.text, f"report  {page}"]
    return Output("\n\n".join(text), {"folder": run.folder, "page": page, **said.data, "result": record})
