"""`circuitdisc heads TOOL`: heads and neurons one by one."""

from pathlib import Path
from typing import Any

from circuitdisc.jobs.job import Answer, Call, Job, Leaves

GROUP = """Heads and neurons one by one. Prints a table and leaves a folder with result.json, arrays.npz (every example's
values) and report.html, one page that opens offline.

  circuitdisc heads roles model=toys/induction task=induction task.length=8
  circuitdisc heads attention model=tpp/lightweight task=tpp query=end key=first
  circuitdisc heads knockout model=tpp/lightweight task=tpp ablation=mean steps=9
  circuitdisc heads neurons model=tpp/lightweight task=tpp knock_out=[a3.h1]
  circuitdisc heads weights model=toys/linear_regression"""

LISTS = ("roles", "order", "knock_out", "layers", "sizes", "inputs")


def _tool(name: str, function: str, heading: str, summary: str) -> Job:
    """A tool of this command.

    Args:
        function: its name in `circuitdisc.heads`.
    """

    def find(call: Call, folder: Path, journal: Any) -> Answer:
        import circuitdisc.heads
        from circuitdisc.engine.selfcheck import load_model
        from circuitdisc.jobs.pipeline import build_task

        settings, shared = call.own, call.shared
        if "ablation" in call.settings:
            shared |= {"ablation": dict(call.settings["ablation"]), "metric": call.metric}
        model = load_model(**call.settings["model"])
        tool = getattr(circuitdisc.heads, function)
        if "task" not in call.settings:  # weights alone: nothing is run
            return Answer(tool(model, **settings), model.name, (), {"tool": name})
        without_task = name == "roles" and settings["prompts"] == "repeated"
        task = None if without_task else build_task(model, call.settings)
        result = tool(model, task, **settings, **shared)
        subject = f"{model.name}, {'random tokens said twice' if task is None else f'task {task.name}'}"
        notes = () if task is None else task.notes
        return Answer(result, subject, notes, {"tool": name})

    return Job(
        name=f"heads {name}",
        summary=summary,
        text=f"{heading}: {summary}.",
        config=f"heads_{name}",
        lists=LISTS,
        find=find,
        leaves=Leaves(
            heading=heading,
            words=lambda call: (f"heads-{name}", call.model_name, *([call.task_name] if "task" in call.settings else [])),
            described_by="heads",
            format="circuitdisc.heads",
        ),
    )


JOBS = (
    _tool(
        "roles",
        "head_roles",
        "Head roles",
        "which heads attend by a simple pattern: to the previous token, to the first one, by induction",
    ),
    _tool("attention", "attention_to", "Attention", "average attention of every head from one position to another"),
    _tool("logits", "logit_attribution", "Logit attribution", "what every head, MLP and bias adds to the logit difference"),
    _tool("effects", "head_effects", "Head effects", "the metric with every head ablated alone"),
    _tool(
        "knockout",
        "knockout_curve",
        "Knock-out curve",
        "heads ablated one after the other, in the order of their effect and at random",
    ),
    _tool("neurons", "neuron_analysis", "Neurons", "the neurons that the answer, or what heads do for it, depends on"),
    _tool("weights", "head_matrices", "Weights", "the key-query and output-value products of a toy's heads, axis by axis"),
)
