"""What a path patching map costs, in forwards of the model, against the two runs a head of the two-pass form.

    python benchmarks/path_patching.py      # writes benchmarks/results/PATH_PATCHING.md

A map has one entry for every head that comes before the receivers. "Forwards" is the map's time over that of one forward of the
model's own module on the same examples, measured in turn in one run; the two-pass form needs two forwards a head (a literal
implementation of it is what the tests hold the map equal to). The clean and the corrupted run are not counted: one of each
serves any number of maps.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import in_turn, machine, markdown, random_gpt2, random_task

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.path_effects import PathEffects, PathPatching
from circuitdisc.metrics import METRICS
from circuitdisc.models import Model
from circuitdisc.shipped import shipped_models
from circuitdisc.tasks.base import Task, collate

RESULTS = Path(__file__).parent / "results" / "PATH_PATCHING.md"
HEADERS = [
    "model",
    "examples",
    "paths into",
    "at",
    "heads",
    "two-pass form: forwards",
    "map: forwards",
    "map: node evaluations / nodes",
]


def targets(model: Model) -> dict[str, tuple[list[str], str]]:
    """Receivers and their positions: the logits, queries of late heads at the end, keys and values of middle heads."""
    late, middle = model.graph.n_layers - 2, model.graph.n_layers // 2
    return {
        "logits": (["logits"], "end"),
        f"q of three heads in layer {late}": ([f"a{late}.h{head}<q>" for head in range(3)], "end"),
        f"k of three heads in layer {middle}": ([f"a{middle}.h{head}<k>" for head in range(3)], "all"),
        f"v of one head in layer {middle}": ([f"a{middle}.h1<v>"], "end-1"),
    }


def rows(model: Model, task: Task, repetitions: int) -> list[list[str]]:
    patching = Patching(model, Ablation("resample"), task.train)
    paths = PathPatching(patching, patching.hold(task.train), METRICS["logit_diff"])
    batch = collate(task.train)

    def forward() -> None:
        with torch.no_grad():
            model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)

    chosen = targets(model)
    maps: dict[str, PathEffects] = {}

    def patch(name: str) -> None:
        ends, at = chosen[name]
        maps[name] = paths.effects("heads", ends, "all", at)

    work: dict[str, Callable[[], object]] = {"forward": forward}
    work |= {name: partial(patch, name) for name in chosen}
    seconds, found = in_turn(work, repetitions), []
    for name, (_, at) in chosen.items():
        effects = maps[name]
        n_heads = int((effects.patched[:, 0] == effects.patched[:, 0]).sum())  # NaN where no path leads
        evaluations = effects.cost.node_evaluations / model.graph.n_senders
        sizes = [f"{len(task.train)} x {max(len(one) for one in task.train)}", name, at, str(n_heads), str(2 * n_heads)]
        found.append([model.name, *sizes, f"{seconds[name] / seconds['forward']:.1f}", f"{evaluations:.1f}"])
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for name, task in (("multitask/base", "ioi"), ("tpp/lightweight", "tpp")):
        if name in shipped_models():
            model = cd.load_model(name)
            found += rows(model, cd.load_task(task, model, n=args.examples), args.repetitions)
    model = random_gpt2({})
    found += rows(model, random_task(model, args.examples, 16, None), args.repetitions)
    text = [
        "# Cost of path patching",
        "",
        machine(),
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        *markdown(HEADERS, found),
        "",
    ]
    RESULTS.write_text("\n".join(text), encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
