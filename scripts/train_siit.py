"""Train the shipped cases with known circuits, by strict interchange-intervention training.

    python scripts/train_siit.py                             # all cases, one after the other
    python scripts/train_siit.py --cases induction balance   # some of them
    python scripts/train_siit.py --measure                   # measure the shipped weights again, without training

Each case takes one to four minutes on one idle core; the same seed gives the same weights on the same machine. Writes
circuitdisc/shipped/siit/<case>/ and, case by case, circuitdisc/shipped/siit/RESULTS.json, from the weights as they ship
(float16) on prompts that were never trained on. The losses are those of circuitdisc/known/siit/training.py.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measure_siit import measured
from safetensors.torch import save_file
from tqdm import tqdm

from circuitdisc.files import read_json, write_json
from circuitdisc.known.siit.case import CASES, RESULTS, program_of
from circuitdisc.known.siit.program import SiitProgram, draw_prompts
from circuitdisc.known.siit.training import Trainer

OUT = RESULTS.parent
STEPS = {"balance": 2000, "copy_or_reverse": 2000, "modular_sum": 1400, "pointers": 1500, "histogram": 1600}
DEFAULT_STEPS = 2500
LR = 3e-3
LATE = {
    "modular_sum",
    "histogram",
    "pointers",
}  # the behaviour loss comes in as the readouts go out, else it is learned through other nodes first
BATCH, WARMUP = 64, 100


def train(program: SiitProgram, steps: int, seed: int, *, batch: int = BATCH, lr: float = LR, progress: bool = True) -> Trainer:
    """Adam, linear warm-up and a cosine down to a fiftieth; the readouts' loss fades out over the first half."""
    torch.manual_seed(seed)
    trainer, rng = Trainer(program, seed), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(trainer.parameters, lr=lr, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with tqdm(range(steps), desc=program.name, unit="step", mininterval=10, disable=not progress) as bar:
        for step in bar:
            losses = trainer.losses(draw_prompts(program, rng, batch, trained=True))
            optimizer.zero_grad()
            early = max(0.0, 1 - 2 * step / steps)
            losses.total(behaviour=1 - early if program.name in LATE else 1.0, readout=early).backward()
            torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                shown = {name: f"{loss.item():.3f}" for name, loss in vars(losses).items()}
                bar.set_postfix(shown)
    return trainer


def save(trainer: Trainer, folder: Path, note: str) -> None:
    """Configuration and float16 weights, in TransformerLens names."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in trainer.toy.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**asdict(trainer.program.config), "note": note}, indent=1) + "\n")


def record(name: str, **training: object) -> dict[str, object]:
    """Measure a shipped case and write its part of RESULTS.json; what is known of its training stays unless it is given."""
    results = read_json(RESULTS) if RESULTS.is_file() else {"cases": {}}
    before = results["cases"].get(name, {}).get("training", {})
    results["cases"][name] = {"training": training or before, **measured(name)}
    results["cases"] = {one: results["cases"][one] for one in CASES if one in results["cases"]}
    # the short form that `circuitdisc list models` shows
    results["checkpoints"] = {one: {"tasks": {one: case["accuracy"]}} for one, case in results["cases"].items()}
    write_json(RESULTS, results)
    return results["cases"][name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, help="default: 2500, or fewer for the cases that need no more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="measure only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.cases:
        training: dict[str, object] = {}
        if not args.measure:
            steps = args.steps or STEPS.get(name, DEFAULT_STEPS)
            command = f"scripts/train_siit.py --cases {name} --steps {steps} --seed {args.seed}"
            start, used = time.perf_counter(), time.process_time()
            trainer = train(program_of(name), steps, args.seed)
            training = {"command": command, "batch": BATCH, "lr": LR, "processor_seconds": round(time.process_time() - used)}
            training["seconds"] = round(time.perf_counter() - start)
            save(trainer, OUT / name, f"trained by {command}")
        found = record(name, **training)
        print(json.dumps({name: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
