"""What `cd.score` costs beside the search, with 20 random controls and with `auto`, and how near the estimate comes.

    python benchmarks/score_cost.py                            # multitask/base
    python benchmarks/score_cost.py --model FOLDER --n 20 --n-heldout 40 --edges 500

Prints rows of a table: `eap_ig` under resample ablation on `ioi`, then the score of its circuit. A plain forward is the model's
own run on the search examples, divided by their number. `bar` is the worst ratio, either way, of the whole time that the bar
expects to what it took, after the first tenth.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import circuitdisc as cd
from circuitdisc import progress
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.patching import Patching
from circuitdisc.scoring.work import runs_of

HEADER = ["model", "", "circuits", "seconds", "plain forwards of a prompt", "estimate, seconds", "bar"]


class Bar(progress.tqdm):
    """A bar that remembers when it was moved."""

    last: "Bar"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.begun, self.moves, Bar.last = time.perf_counter(), list[tuple[float, float]](), self

    def update(self, n: float | None = 1) -> bool | None:
        super().update(n)
        self.moves.append((self.n / self.total, time.perf_counter() - self.begun))

    @property
    def worst(self) -> float:
        took = self.moves[-1][1]
        expected = [seconds / share / took for share, seconds in self.moves if share >= 0.1]
        return max(max(one, 1 / one) for one in expected)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multitask/base")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--n-heldout", type=int, default=200)
    parser.add_argument("--edges", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    progress.tqdm = Bar
    model = cd.load_model(args.model)
    task = cd.load_task("ioi", model, n=args.n, n_heldout=args.n_heldout)
    (batch,) = (chunk.batch for chunk in Patching(model, cd.Ablation("resample"), task.train).chunks(task.train))
    forward = min(seconds(lambda: full_run(model, batch.clean, batch.is_token, batch.position_ids)) for _ in range(5)) / args.n
    found: Any = None

    def search() -> None:
        nonlocal found
        found = cd.discover(model, task, "eap_ig", ablation="resample", edges=args.edges)

    rows, name = [HEADER, ["---"] * len(HEADER)], model.name.rsplit("/", 1)[-1] if args.model[:1] in "/." else model.name
    took = seconds(search)
    rows.append([name, f"search, {found.circuit.n_edges} edges", "", f"{took:.1f}", f"{took / forward:,.0f}", "", ""])
    for n_random in (20, "auto"):
        said: list[float] = []
        options: dict[str, Any] = {"n_random": n_random, "search": found.cost, "progress": True}
        scored: Any = None

        def score(options: dict[str, Any] = options, said: list[float] = said) -> None:
            nonlocal scored
            scored = cd.score(
                model, task, found.circuit, on_pace=lambda pace, works: said.append(pace * runs_of(works)), **options
            )

        took = seconds(score)
        n_controls = len(scored.get("faithfulness").controls)
        figures = [f"{3 + n_controls}", f"{took:.1f}", f"{took / forward:,.0f}", f"{said[0]:.1f}", f"{Bar.last.worst:.2f}"]
        rows.append([name, f"score, n_random={n_random}", *figures])
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
