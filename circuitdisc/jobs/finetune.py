"""The command line of `circuitdisc finetune`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

LISTS = ("fractions", "epochs", "lora_targets", "others")
FOLDER = "runs/finetune_<model>_<task>_<date and time>"
PAGE = "report.html"
WHAT = """A ladder of checkpoints: the model fine-tuned on growing fractions of one pool of a task's examples, none held out.
Leaves a Hugging Face folder for each, ladder.json and report.html; other commands take checkpoints=FOLDER. Given again with
the same out=, it goes on where it was killed.

  circuitdisc finetune model=multitask/base task=entity_tracking task.boxes=7 lr=3e-4 out=runs/boxes
  circuitdisc finetune model=multitask/base task=entity_tracking task.boxes=7 method=heads heads=[a1.h6,a3.h0] control=1
  circuitdisc finetune model=gpt2 task=tpp method=lora n_pool=158000 model.device=cuda"""


def finetune_command(args: Sequence[str]) -> str:
    """`circuitdisc finetune` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind, unless training had begun: then the same command goes on with it.
    """
    if asks_for_help(args):
        return help_text("finetune", WHAT, "finetune", folder=FOLDER)
    given = {arg.partition("=")[0] for arg in args}
    if "model" not in given and "model.name" not in given:
        raise BadSetting("which model? Give the base to start from, as in model=multitask/base")
    if refused := sorted(given & {"model.dtype", "model.components", "model.split_embeddings"}):
        raise BadSetting(
            f"{refused[0]} says how a model is cut; training takes model= and model.device= alone, and dtype= to save"
        )
    config = parse("finetune", "finetune", args, lists=LISTS)
    return _run(config, shlex.join(["circuitdisc", "finetune", *args]))


def _run(config: dict[str, Any], command: str) -> str:
    set_threads(config["threads"])
    from circuitdisc.checkpoints.finetune.finetune import finetune
    from circuitdisc.checkpoints.listing import LADDER
    from circuitdisc.pages.baselines import describe
    from circuitdisc.pages.description import description_text, write_description
    from circuitdisc.pages.tables import text_table
    from circuitdisc.runs import stoppable, with_out, writing

    settings = {**config["settings"]}
    for name in ("fractions", "epochs"):
        settings[name] = _numbers(name, settings[name])
    base = str(config["model"]["name"])
    folder = Path(config["out"]) if config["out"] else stamped_folder("finetune", base, task_word(config))
    shared = {name: config[name] for name in ("seed", "memory", "progress")}

    def kept() -> bool:
        return (folder / LADDER).exists()

    with stoppable(with_out(command, folder), kept):
        ladder = finetune(base, config["task"], folder, device=config["model"]["device"], **settings, **shared)
    headers = ("checkpoint", "trained", "weights", "examples", "steps", "seconds", "loss")
    table = text_table(headers, [_line(rung, ladder.settings["method"]) for rung in ladder.rungs], "llrrrrr")
    parts = [f"{base}, fine-tuned on task {task_word(config)}", table]
    if ladder.figures is not None:
        description = describe(ladder.figures)
        record = {"command": command, **ladder.settings}
        with writing(folder):
            write_description(folder / PAGE, description, heading="Fine-tuned checkpoints", subject=parts[0], settings=record)
        parts += [description_text(description)]
    return "\n\n".join([*parts, f"folder  {folder}"])


def _line(rung: Any, method: str) -> tuple[object, ...]:
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
        f"{trained.loss:.4g}",
    )


def _numbers(name: str, value: object) -> list[float]:
    """Numbers, which may have been written without brackets."""
    try:
        return [float(str(one)) for one in (value if isinstance(value, list) else [value])]
    except ValueError:
        raise BadSetting(f"{name}={value!r} cannot be used: give a number, or a list of numbers") from None
