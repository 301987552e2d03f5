"""One call on several ranks: time of one and of two, and the work of each of 4, 8 and 64, counted.

    python benchmarks/ranks.py                     # writes benchmarks/results/RANKS.md

Time: `torchrun` with one process and with two, one thread each, in turn; loading and start are left out, being the same. Beside
the time of the clock stands the processor's time of the busiest process, which other programs on the machine disturb less.

Work: the same calls with ranks that are threads of this process (`circuitdisc/engine/ranks.py`), and the floating-point
operations of matrix products that each of them does, backward passes among them. What every rank does again does not spread:
of N ranks (operations of all - operations of one rank alone) / (N - 1).
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, markdown
from torch.utils.flop_counter import FlopCounterMode

import circuitdisc as cd
from circuitdisc.engine.ranks import ranks, simulated
from circuitdisc.jobs.ranked import ranked
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results" / "RANKS.md"
SEARCHES: dict[str, dict[str, Any]] = {
    "eap_ig": {},
    "head_ablation": {},
    "score": {},
    "edge_pruning": {"steps": 20},
    "acdc": {"threshold": 0.5},
}
TIMED = ("acdc", "eap_ig", "score")


def work(name: str, model: Model, task: Task) -> None:
    """One search, or the scores of a random circuit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given: dict[str, Any] = {"ablation": "mean", "metric": "logit_diff"}
        if name == "score":
            circuit = cd.discover(model, task, "random", allow_chance=True, **given).circuit
            cd.score(model, task, circuit, n_random=5)
        else:
            cd.discover(model, task, name, allow_chance=True, **given, **SEARCHES[name])


def subject(model: str, n: int) -> tuple[Model, Task]:
    loaded = cd.load_model(model)
    return loaded, cd.load_task("tpp" if model.startswith("tpp") else "ioi", loaded, n=n, n_heldout=n)


# --- time -----------------------------------------------------------------------------------------------------------------


def timed(name: str, model: str, n: int) -> None:
    """What each process of torchrun does: the work twice, of which the second time counts."""
    with ranked(True):
        made, clock, processor = subject(model, n), 0.0, 0.0
        for _ in range(2):
            clock, processor = time.perf_counter(), time.process_time()
            work(name, *made)
        spent = torch.tensor([[time.perf_counter() - clock, time.process_time() - processor]])
        most = torch.stack(ranks().gather(spent, "seconds")).amax((0, 1)).tolist()
    if os.environ["RANK"] == "0":
        print(json.dumps(most))


def seconds(name: str, model: str, n: int, n_ranks: int) -> tuple[float, float]:
    """Of the clock, and of the processor in the busiest rank."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, *command, "--timed", name, "--model", model, "--examples", str(n)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    clock, processor = json.loads(done.stdout.splitlines()[-1])
    return clock, processor


def time_rows(model: str, n: int, repetitions: int) -> list[list[str]]:
    rows = []
    for name in TIMED:
        runs = [[seconds(name, model, n, n_ranks) for n_ranks in (1, 2)] for _ in range(repetitions)]
        one, two = ([median(run[which][kind] for run in runs) for kind in (0, 1)] for which in (0, 1))
        figures = (one[0], two[0], one[0] / two[0], one[1], two[1], one[1] / two[1])
        rows.append([name, *(f"{figure:.2f}" for figure in figures)])
    return rows


# --- work -----------------------------------------------------------------------------------------------------------------


def operations(name: str, model: Model, task: Task, n_ranks: int) -> tuple[list[int], int]:
    """Operations of every rank, and how often they gather."""

    def count(_: int) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            work(name, model, task)
        return counter.get_total_flops(), ranks().n_calls

    counted = simulated(n_ranks, count) if n_ranks > 1 else [count(0)]
    return [flops for flops, _ in counted], counted[0][1]


def work_rows(model: str, n: int, sizes: list[int]) -> list[list[str]]:
    made = subject(model, n)
    rows = []
    for name in SEARCHES:
        ((alone,), _) = operations(name, *made, 1)
        for n_ranks in sizes:
            each, n_gathers = operations(name, *made, n_ranks)
            again = (sum(each) - alone) / (n_ranks - 1) / alone
            rows.append(
                [name, str(n_ranks), f"{alone:.3g}", f"{max(each) / alone:.2%}", f"{1 / n_ranks:.2%}",
                 f"{alone / max(each):.1f}", f"{again:.2%}", f"{n_gathers:,}"]
            )  # fmt: skip
            print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tpp/lightweight", help="that is timed")
    parser.add_argument("--examples", type=int, default=64, help="examples that are timed")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--counted", default="tpp/lightweight", help="model whose work is counted")
    parser.add_argument("--counted-examples", type=int, default=64, help="examples of that")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 64])
    parser.add_argument("--timed", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.timed:
        timed(args.timed, args.model, args.examples)
        return
    counted = work_rows(args.counted, args.counted_examples, args.ranks)
    clock = time_rows(args.model, args.examples, args.repetitions)
    text = [
        "# One call on several ranks",
        "",
        f"`python benchmarks/ranks.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"{machine()}; one thread a rank.",
        "",
        f"## Time of one rank and of two: {args.model}, {args.examples} examples",
        "",
        f"Seconds, medians of {args.repetitions} in turn; `processor`: of the busiest rank.",
        "",
        *markdown(["call", "1 rank", "2 ranks", "ratio", "processor, 1", "processor, 2", "ratio"], clock),
        "",
        f"## Work of the busiest rank, counted: {args.counted}, {args.counted_examples} search and as many held-out examples",
        "",
        "Operations of matrix products, as shares of those that one rank alone does. `again`: what every rank does for itself.",
        "",
        *markdown(
            ["call", "ranks", "operations, alone", "busiest rank", "1 / ranks", "times less", "again", "gathers"], counted
        ),
    ]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
