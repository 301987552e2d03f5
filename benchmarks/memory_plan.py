"""The plan of a command's memory against what it takes.

    python benchmarks/memory_plan.py                       # writes benchmarks/results/MEMORY_PLAN.md
    python benchmarks/memory_plan.py /path/to/model        # the same with a model of yours
    python benchmarks/memory_plan.py --only acdc path_patching --seconds 20

Without a folder the model has SmolLM2-135M's shape and random weights (nothing is downloaded). Each case runs in a process of
its own; measured is the rise of the largest resident set over its size once the model is loaded and a tiny run has been made.
It is measured, as in attribution_memory.py, with an allocator that gives freed blocks back at once, which is what the plan
counts; with --heap once more with glibc's own heap, which keeps them in holes. A search is stopped after some seconds: planned
is the most that had been planned by then.
"""

import argparse
import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from attribution import reset_peak, resident, rise
from attribution_memory import GRADIENTS
from common import machine, markdown, random_task
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.discovery.registry import ALGORITHMS, SearchContext
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Shapes, examples_in_budget, means_bytes, peak_bytes
from circuitdisc.engine.memory import COPIES_TO_PREPARE, parse_memory, rows_in
from circuitdisc.engine.patching import Patching, Removal
from circuitdisc.engine.path_effects import PathPatching
from circuitdisc.engine.path_run import PathRun
from circuitdisc.metrics import get_metric
from circuitdisc.models import Model, cut_hugging_face
from circuitdisc.scoring import score
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results" / "MEMORY_PLAN.md"
SMOL: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 49152,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Something that is run within a budget.

    Args:
        n, length: prompts and their tokens.
    """

    name: str
    ablation: str
    memory: str
    n: int
    length: int = 10


CASES = [
    Case("acdc", "resample", "1GiB", 20),
    Case("acdc", "mean", "2GiB", 20),
    Case("bisect", "resample", "1GiB", 20),
    Case("exact", "resample", "2GiB", 20),
    *(
        Case(name, ablation, memory, 100)
        for name in ("eap", "eap_ig", "eap_ig_activations", "atp")
        for ablation, memory in (("resample", "600MB"), ("mean", "1GiB"))
    ),
    Case("path_patching", "resample", "2GiB", 20),
    Case("head_ablation", "resample", "1GiB", 40),
    Case("head_ablation", "mean", "600MB", 20),
    Case("score", "resample", "1GiB", 100),
    Case("score", "mean", "600MB", 100),
]


class Planned:
    """The most bytes that the engine has planned to take so far."""

    def __init__(self) -> None:
        self.most = 0

    def watch(self, owner: type, name: str, planned: Callable[..., int]) -> None:
        """Ask for the plan each time before a method runs."""
        method = getattr(owner, name)

        def asks(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.most = max(self.most, planned(this, *args))
            return method(this, *args, **kwargs)

        setattr(owner, name, asks)


def load(folder: str | None) -> Model:
    if folder:
        return cd.load_model(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMOL)
    return cut_hugging_face(transformers.AutoModelForCausalLM.from_config(config).eval(), name="random SmolLM2-135M")


def run(model: Model, task: Task, case: Case, memory: str) -> object:
    """The case on any task."""
    ablation = cd.Ablation(case.ablation)
    if case.name == "score":
        return score(model, task, cd.Circuit.full(model.graph), ablation=case.ablation, memory=memory)
    settings = {"threshold": 0.05} if case.name in ("acdc", "bisect") else {}
    context = SearchContext(metric="logit_diff", memory=memory)
    return ALGORITHMS[case.name].function(model, task, ablation, context, **settings)


def measure(folder: str | None, case: Case, seconds: int) -> tuple[int, int]:
    """Planned and measured bytes, in this process, which must be fresh."""
    model = load(folder)
    planned = Planned()
    watch(model, planned)
    stop(5)
    within(lambda: run(model, random_task(model, 2, 4, None), case, "4GiB"))
    task = random_task(model, case.n, case.length, None)
    gc.collect()
    planned.most, before = 0, resident()
    reset_peak()
    if case.name not in GRADIENTS:
        stop(seconds)
    within(lambda: run(model, task, case, case.memory))
    if case.name in GRADIENTS:
        planned.most = of_attribution(model, task, case)
    return planned.most, rise(before)


def watch(model: Model, planned: Planned) -> None:
    """Where the engine plans."""
    planned.watch(Removal, "try_cuts", lambda removal, receiver, senders, *_: removal.planned_bytes(receiver, len(senders)))
    planned.watch(Removal, "each_without", lambda removal, receiver, senders: removal.planned_bytes(receiver, len(senders)))

    def of_paths(paths: PathPatching, path_run: PathRun, senders: list[int], *_: object) -> int:
        held, size = paths.held_bytes(path_run), paths.row_size(path_run)
        return held + size[0] * min(len(senders), rows_in(model, paths.patching.budget - held, *size))

    def of_ranking(attribution: Attribution, *_: object) -> int:
        shapes, scope = Shapes.of(attribution.components, attribution.metric), attribution.ablation.method.averages
        means = 0 if scope is None else means_bytes(shapes, attribution.examples, scope)
        length = max(map(len, attribution.examples))
        return peak_bytes(shapes, attribution.chunk_size, length, attribution.gradient, means=means)

    planned.watch(Attribution, "over_chunks", of_ranking)
    planned.watch(PathPatching, "_patched", of_paths)
    planned.watch(Patching, "hold_share", lambda patching, examples, *_: patching.hold_bytes(examples, COPIES_TO_PREPARE))
    planned.watch(Patching, "evaluate", lambda patching, examples, *_: patching.chunk_bytes(examples))


def of_attribution(model: Model, task: Task, case: Case) -> int:
    shapes, gradient = Shapes.of(model.components, get_metric("logit_diff")), GRADIENTS[case.name]
    scope = cd.Ablation(case.ablation).method.averages
    n = examples_in_budget(shapes, parse_memory(case.memory), task.train, gradient, scope)
    means = 0 if scope is None else means_bytes(shapes, task.train, scope)
    return peak_bytes(shapes, n, case.length, gradient, means=means)


class _OutOfTime(Exception):
    pass


def stop(seconds: int) -> None:
    def out_of_time(*_: object) -> None:
        raise _OutOfTime

    signal.signal(signal.SIGPROF, out_of_time)  # processor seconds
    signal.setitimer(signal.ITIMER_PROF, seconds)


def within(work: Callable[[], object]) -> None:
    with contextlib.suppress(_OutOfTime):
        work()
    signal.setitimer(signal.ITIMER_PROF, 0)


def in_a_process(args: argparse.Namespace, number: int, gives_back: bool) -> tuple[int, int]:
    command = [sys.executable, __file__, "--threads", str(args.threads), "--seconds", str(args.seconds), "--case", str(number)]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "262144"} if gives_back else {})}
    command += [args.model] if args.model else []
    words = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.split()
    return int(words[-2]), int(words[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to run")
    parser.add_argument("--seconds", type=int, default=60, help="when a search is stopped")
    parser.add_argument("--heap", action="store_true", help="measure with glibc's own heap, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    if args.case is not None:
        print(*measure(args.model, CASES[args.case], args.seconds))
        return
    chosen = [(number, case) for number, case in enumerate(CASES) if not args.only or case.name in args.only]
    rows = []
    for number, case in tqdm(chosen, unit="case"):
        planned, measured = in_a_process(args, number, gives_back=True)
        with_holes = f"{in_a_process(args, number, gives_back=False)[1] / 2**20:.0f}" if args.heap else ""
        mib = [f"{size / 2**20:.0f}" for size in (planned, measured)]
        cells = [case.name, case.ablation, f"{case.n} x {case.length}", case.memory]
        rows.append([*cells, *mib, f"{measured / max(1, planned):.2f}", with_holes])
        print(*rows[-1], file=sys.stderr)
    headers = [
        "command", "ablation", "prompts x tokens", "memory", "planned, MiB", "measured, MiB", "measured / planned",
        "measured with glibc's own heap, MiB",
    ]  # fmt: skip
    text = "\n".join(
        [
            "# The memory of a command, planned and measured",
            "",
            f"`python benchmarks/memory_plan.py --seconds {args.seconds}`",
            "",
            f"Model: {Path(args.model).name if args.model else 'random weights in the shape of SmolLM2-135M'}, float32, metric "
            "logit_diff, prompts of random tokens that differ everywhere. Rise of the largest resident set in a process of its "
            "own, over the loaded model; with freed blocks given back at once (MALLOC_MMAP_THRESHOLD_=262144), or "
            f"with glibc's own heap. Searches are stopped after {args.seconds} seconds. {machine()}",
            "",
            *markdown(headers, rows),
            "",
        ]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
