"""Fine-tune multitask/base on entity tracking with seven boxes, by `circuitdisc finetune`: the entity-tracking study in small.

1. Three ladders of one rung, each with checkpoints on the way: all weights, a low-rank change of them (LoRA), and,
   as a control, all weights on another task that the base does badly (induction of 24 tokens).
2. Ship them in float16.
3. Precise SFT: the heads that the base needs most for the task (mean effect of resampling one alone) are trained alone, and
   beside them as many random heads, for as many steps on the same examples.
4. Measure all on held-out examples of the task and on the base's other tasks; write the figures beside those of the base.

What is finished in the work folder is kept; the same command goes on where it was killed. Run scripts/train_multitask.py first:
this script adds to the RESULTS.json that it writes.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from training import versions

import circuitdisc as cd
from circuitdisc.checkpoints.baselines import Baselines
from circuitdisc.checkpoints.evaluation_sets import HELDOUT
from circuitdisc.checkpoints.finetune.finetune import TrainedLadder
from circuitdisc.checkpoints.finetune.loop import save_checkpoint
from circuitdisc.models import read_model

BASE = "multitask/base"
BOXES: dict[str, Any] = {"name": "entity_tracking", "boxes": 7, "n": 1, "n_heldout": 300}
INDUCTION: dict[str, Any] = {"name": "induction", "length": 24, "n": 1, "n_heldout": 300}
OTHERS = ("ioi", "induction", "colored_objects")
LORA = {"method": "lora", "lora_targets": ["c_attn", "c_proj", "c_fc"]}
SHIPPED: dict[str, tuple[dict[str, Any], float, dict[str, Any]]] = {  # task, learning rate, settings
    "boxes_full": (BOXES, 3e-4, {}),
    "boxes_lora": (BOXES, 1e-3, LORA),
    "induction_full": (INDUCTION, 3e-4, {}),
}
N_POOL, WARMUP, SAVE_STEPS = 9600, 10, 25  # 150 steps of 64
N_HEADS = 6
PRECISE: dict[str, Any] = {"fractions": [1], "epochs": 1, "lr": 1e-3, "n_pool": N_POOL, "warmup": WARMUP, "figures": False}


def make(name: str, args: argparse.Namespace) -> TrainedLadder:
    """Train one of the shipped ladders."""
    task, lr, settings = SHIPPED[name]
    return cd.finetune(
        BASE,
        task,
        args.work_dir / name,
        fractions=[1],
        epochs=1,
        n_pool=N_POOL,
        lr=lr,
        warmup=WARMUP,
        save_steps=SAVE_STEPS,
        figures=False,
        seed=args.seed,
        progress=True,
        **settings,
    )


def key_heads(n: int, n_heldout: int, seed: int) -> list[str]:
    """The heads that the base misses most on the task, one ablated at a time, on examples that nobody is judged on."""
    model = cd.load_model(BASE)
    task = cd.load_task("entity_tracking", model, n=100, n_heldout=n_heldout, boxes=7, seed=seed)
    return cd.heads.head_effects(model, task, ablation="resample", progress=True).order()[:n]


def measure(checkpoints: list[str], n: int) -> Baselines:
    """All figures on the task with seven boxes, and on what the base could do."""
    task = {**BOXES, "n_heldout": n}
    return cd.baselines(checkpoints, task, others=[*OTHERS, "entity_tracking"], n_others=n // 2, progress=True)


def figures_of(table: Baselines, checkpoint: str) -> dict[str, Any]:
    """What RESULTS.json says of one checkpoint."""
    n = table.get(checkpoint).n
    others = [on for on in table.sets if on not in (HELDOUT, "corrupted")]
    tasks = {"entity_tracking, 7 boxes": table.get(checkpoint)} | {
        on.removesuffix(" (defaults)"): table.get(checkpoint, on=on) for on in others
    }
    return {
        "tasks": {on: round(one.value, 4) for on, one in tasks.items()},
        "intervals": {on: [round(one.low, 4), round(one.high, 4)] for on, one in tasks.items()},
        "log_prob": round(table.get(checkpoint, "log_prob").value, 4),
        "logit_diff": round(table.get(checkpoint, "logit_diff").value, 4),
        "own_answer_of_corrupted": round(table.get(checkpoint, on="corrupted").value, 4),
        "n": n,
        "n_others": n // 2,
    }


def control_figures(n: int) -> dict[str, dict[str, Any]]:
    """The base and the control on what the control was trained on."""
    table = cd.baselines([BASE, "multitask/induction_full"], {**INDUCTION, "n_heldout": n}, others=[])
    found = {name: table.get(name) for name in table.checkpoints}
    return {name: {"accuracy": one.value, "interval": [one.low, one.high], "n": one.n} for name, one in found.items()}


def ship(checkpoint: str, folder: Path) -> None:
    """Copy a checkpoint in float16."""
    model = read_model(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(model.module, model.tokenizer, folder, "float16")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("circuitdisc/shipped/multitask"), help="folder of the checkpoints")
    parser.add_argument("--work-dir", type=Path, default=Path("build/train_boxes"), help="folder of the ladders")
    parser.add_argument("--only", nargs="*", choices=SHIPPED, help="make and ship these alone, without figures")
    parser.add_argument("--seed", type=int, default=0, help="seed of examples, of their order and of random heads")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--held-out", type=int, default=1000, help="examples to measure on; half as many of each other task")
    return parser.parse_args()


def main() -> None:
    """Train, ship and measure."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    ladders = {name: make(name, args) for name in args.only or SHIPPED}
    for name, ladder in ladders.items():
        ship(ladder.checkpoints[1], args.out / name)
    if args.only:
        return
    heads = key_heads(N_HEADS, args.held_out, args.seed)
    only = {"method": "heads", "heads": heads, "control": 1}
    precise = cd.finetune(BASE, BOXES, args.work_dir / "precise", seed=args.seed, progress=True, **PRECISE, **only)
    shipped = {name: f"multitask/{name}" for name in SHIPPED}
    tried = {"random_heads" if rung.random else "heads": str(precise.folder / rung.name) for rung in precise.rungs}
    on_the_way = [
        str(path)
        for ladder in (ladders["boxes_full"], ladders["boxes_lora"])
        for path in sorted(Path(ladder.checkpoints[1]).glob("step-*"), key=lambda path: int(path.name[5:]))
    ]
    table = measure([BASE, *shipped.values(), *tried.values()], args.held_out)
    way = cd.baselines(on_the_way, BOXES, others=[], progress=True)
    results = json.loads((args.out / "RESULTS.json").read_text())
    for name in SHIPPED:
        task, lr, settings = SHIPPED[name]
        results["checkpoints"][name] = {
            **figures_of(table, shipped[name]),
            "base": BASE,
            "task": task,
            "settings": {"lr": lr, "batch_size": 64, "warmup": WARMUP, "n_pool": N_POOL, **settings},
        }
    results["boxes"] = {
        "command": " ".join(["python", *sys.argv]),
        "settings": {"seed": args.seed, "threads": args.threads},
        "versions": versions(),
        "base": figures_of(table, BASE),
        "induction of 24 tokens": control_figures(args.held_out),
        "on_the_way": {f"{Path(name).parts[-3]} {Path(name).name}": round(way.get(name).value, 4) for name in on_the_way},
        "precise_sft": {
            "heads": heads,
            "random_heads": next(list(rung.heads) for rung in precise.rungs if rung.random),
            "settings": PRECISE,
            "checkpoints": {name: figures_of(table, where) for name, where in tried.items()},
            "trained": [asdict(rung) for rung in precise.rungs],
        },
    }
    (args.out / "RESULTS.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["boxes"], indent=2))


if __name__ == "__main__":
    main()
