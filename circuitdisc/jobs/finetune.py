"""`circuitdisc finetune`: a ladder of checkpoints of one model."""

from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.spelling import PARALLEL

PAGE = "report.html"


def _work(call: Call) -> str:
    if not {"model", "model.name"} & call.given:
        raise BadSetting("which model? Give the base to start from, as in model=multitask/base")
    if refused := sorted(call.given & {"model.dtype", "model.components", "model.split_embeddings", *PARALLEL}):
        raise BadSetting(
            f"{refused[0]} says how a model is cut; training takes model= and model.device= alone, and dtype= to save"
        )
    from circuitdisc.checkpoints.finetune.finetune import finetune
    from circuitdisc.checkpoints.listing import LADDER
    from circuitdisc.pages.baselines import describe
    from circuitdisc.pages.description import description_text, write_description
    from circuitdisc.pages.tables import text_table
    from circuitdisc.runs import stoppable, with_out, writing

    settings = call.own
    for name in ("fractions", "epochs"):
        settings[name] = _numbers(name, settings[name])
    base, device = call.model_name, call.settings["model"]["device"]
    folder = call.folder(("finetune", base, call.task_name))

    def kept() -> bool:
        return (folder / LADDER).exists()

    with stoppable(with_out(call.command, folder), kept):
        ladder = finetune(base, call.settings["task"], folder, device=device, **settings, **call.shared)
    headers = ("checkpoint", "trained", "weights", "examples", "steps", "seconds", "loss")
    table = text_table(headers, [_line(rung, ladder.settings["method"]) for rung in ladder.rungs], "llrrrrr")
    parts, data = [f"{base}, fine-tuned on task {call.task_words}", table], dict[str, Any]()
    if ladder.figures is not None:
        description = describe(ladder.figures)
        record = {"command": call.command, **ladder.settings}
        with writing(folder):
            write_description(folder / PAGE, description, heading="Fine-tuned checkpoints", subject=parts[0], settings=record)
        parts += [description_text(description)]
        data = {**description.said.data, "page": folder / PAGE}
    return Output("\n\n".join([*parts, f"folder  {folder}"]), {"folder": folder, **data, "result": ladder.to_dict()})


def _line(rung: Any, method: str) -> tuple[object, ...]:
    from circuitdisc.wording import number

    trained = rung.trained
    whole = "a low-rank change" if method == "lora" else "all weights"
    what = whole if not rung.heads else f"{len(rung.heads)} {'random ' if rung.random else ''}heads"
    what += f" (and {len(rung.shared)} that share keys and values)" if rung.shared else ""
    return (
        rung.name,
        what,
        f"{trained.parameters:,}",
        f"{trained.examples:,}",
        trained.steps,
        trained.seconds,
        number(trained.loss),
    )


def _numbers(name: str, value: object) -> list[float]:
    """Numbers, which may have been written without brackets."""
    try:
        return [float(str(number)) for number in (value if isinstance(value, list) else [value])]
    except ValueError:
        raise BadSetting(f"{name}={value!r} cannot be used: give a number, or a list of numbers") from None


JOB = Job(
    name="finetune",
    summary="a ladder of checkpoints: all weights, low-rank, or chosen heads alone",
    text="""A ladder of checkpoints: the model fine-tuned on growing fractions of one pool of a task's examples, none held out.
Leaves a Hugging Face folder for each, ladder.json and report.html; other commands take checkpoints=FOLDER. Given again with
the same out=, it goes on where it was killed.

  circuitdisc finetune model=multitask/base task=entity_tracking task.boxes=7 lr=3e-4 out=runs/boxes
  circuitdisc finetune model=multitask/base task=entity_tracking task.boxes=7 method=heads heads=[a1.h6,a3.h0] control=1
  circuitdisc finetune model=gpt2 task=tpp method=lora n_pool=158000 model.device=cuda""",
    config="finetune",
    lists=("fractions", "epochs", "lora_targets", "others"),
    recorded=True,
    work=_work,
)
