"""The plan of cross-model patching against what it takes, and the plan for two models of 8 billion weights.

    python benchmarks/cmap_plan.py               # writes benchmarks/results/CMAP_PLAN.md; some minutes on one core

Two random-weight models of Llama's shape are written to a folder (nothing is downloaded) and patched, each case in a process of
its own. Measured is the largest resident set over the process's size before the first model is loaded, with an allocator that
gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_=65536). Passes are processor seconds of the patched runs over those of a
plain run of the same prompts. The last tables are plans alone, from sizes: no weights are made.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from attribution import reset_peak, resident, rise
from common import machine, markdown

import circuitdisc as cd
from circuitdisc.checkpoints.cmap.job import CrossJob
from circuitdisc.checkpoints.cmap.plan import plan_patching
from circuitdisc.checkpoints.cmap.sets import Wanted
from circuitdisc.engine.cross.patch import HEAD_KINDS
from circuitdisc.engine.cross.plan import CrossPlan, CrossShapes, shapes_from_config
from circuitdisc.engine.forward import clean_states
from circuitdisc.engine.requirements import components_of
from circuitdisc.tasks.base import Example, Task, collate

RESULTS = Path(__file__).parent / "results" / "CMAP_PLAN.md"
SMALL: dict[str, dict[str, Any]] = {
    "llama 31M": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 1408, "vocab_size": 8000, "max_position_embeddings": 128,
    },
    "llama 117M": {
        "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
        "intermediate_size": 2816, "vocab_size": 16000, "max_position_embeddings": 128,
    },
}  # fmt: skip
LARGE = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"model": "llama 31M", "n": 10, "what": ["output", "value"], "cache": "memory", "parts": True},
    {"model": "llama 31M", "n": 10, "what": ["value"], "cache": "disk", "parts": True},
    {"model": "llama 31M", "n": 6, "what": ["pattern"], "cache": "memory", "parts": False},
    {"model": "llama 117M", "n": 6, "what": ["value"], "cache": "disk", "parts": False},
]
N_LARGE, SEED = 300, 0


def prompts(n: int, vocabulary: int) -> Task:
    """Random prompts of 30 to 60 tokens, answered at the last one."""
    generator = np.random.default_rng(SEED)
    lengths = generator.integers(30, 61, n).tolist()
    rows = [tuple(generator.integers(0, vocabulary, length).tolist()) for length in lengths]
    return Task("random", (), tuple(Example(row, None, (len(row) - 1,), ((1,),), ((2,),)) for row in rows))


def make_pair(name: str, folder: Path) -> list[str]:
    """Two checkpoints on disk."""
    found = []
    for seed, which in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(**SMALL[name], tie_word_embeddings=False)
        path = folder / name.replace(" ", "-") / which
        transformers.LlamaForCausalLM(config).save_pretrained(path)
        found.append(str(path))
    return found


def measure(case: dict[str, Any], base: str, tuned: str) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(1)
    task = prompts(case["n"], SMALL[case["model"]]["vocab_size"])
    settings: dict[str, Any] = {"what": case["what"], "parts": case["parts"], "cache": case["cache"]}
    settings |= {"top": 0, "grow": False, "attention": False}
    warm_up(base)
    reset_peak()
    before = resident()
    spent = [0.0]
    CrossJob.run, CrossJob.keep = timed(CrossJob.run, spent), timed(CrossJob.keep, spent)
    found = cd.cmap(base, tuned, task, **settings)
    peak = rise(before)
    model = cd.load_model(base)
    clock = time.process_time()
    for _ in range(2):
        plain_run(model, task, found.plan["chunks"])
    return {
        "plan": found.plan, "forwards": found.cost["forwards"], "peak": peak,
        "seconds": spent[0], "plain": (time.process_time() - clock) / 2,
    }  # fmt: skip


def timed(work: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same, its processor seconds added up."""

    def wrapped(*args: Any, **settings: Any) -> Any:
        clock = time.process_time()
        found = work(*args, **settings)
        spent[0] += time.process_time() - clock
        return found

    return wrapped


def warm_up(base: str) -> None:
    """What the first use of the libraries takes is no part of the plan."""
    model = cd.load_model(base)
    plain_run(model, Task("", (), prompts(1, model.d_vocab).heldout), 1)


def plain_run(model: Any, task: Task, n_chunks: int) -> None:
    cut, size = components_of(model, "the benchmark"), -(-len(task.heldout) // n_chunks)
    for first in range(0, len(task.heldout), size):
        batch = collate(task.heldout[first : first + size])
        for _ in clean_states(cut, model.graph, batch, cut.frame(batch.is_token, batch.position_ids)):
            pass


def in_own_process(case: dict[str, Any], base: str, tuned: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps([case, base, tuned])]
    found = subprocess.run(
        command, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if found.returncode:
        raise SystemExit(found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def checked() -> list[str]:
    """The plan beside what was measured."""
    memory, passes = [], []
    with tempfile.TemporaryDirectory() as folder:
        pairs = {name: make_pair(name, Path(folder)) for name in SMALL}
        for case in CASES:
            found = in_own_process(case, *pairs[case["model"]])
            plan, what = found["plan"], ", ".join(case["what"]) + (", pieces" if case["parts"] else "")
            words = [case["model"], what, case["cache"]]
            parts = [mib(plan[key]) for key in ("weights", "activations", "cache_held")]
            ratio = plan["peak"] / found["peak"]
            memory.append([*words, *parts, mib(plan["peak"]), mib(found["peak"]), f"{ratio:.2f}"])
            measured = found["seconds"] / found["plain"]
            planned = plan["total_passes"] + plan["passes"]["giver, activations kept"]
            counted = found["forwards"] + plan["passes"]["giver, activations kept"]
            passes.append([*words, f"{planned:.2f}", f"{counted:.2f}", f"{measured:.1f}", f"{planned / measured:.2f}"])
            print(memory[-1], passes[-1], flush=True)
    head = ["model", "patched", "kept in"]
    lines = ["## Memory, MiB", ""]
    lines += markdown([*head, "weights", "activations", "kept", "planned peak", "measured", "planned / measured"], memory)
    lines += ["", "## Passes, in plain forwards", ""]
    return lines + markdown([*head, "planned", "counted", "measured (time)", "planned / measured"], passes)


def mib(size: float) -> str:
    return f"{size / 2**20:.1f}"


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def planned() -> list[str]:
    """Two models of 8 billion weights: no weights are made."""
    shapes = shapes_from_config(LARGE, 2)
    lengths = np.random.default_rng(SEED).integers(30, 61, N_LARGE).tolist()
    rows = []
    for what, positions, memory, parts in (
        (("output", "value"), None, 16, True),
        (("output", "value"), None, 4, True),
        (("output", "value"), None, 16, False),
        (("output", "value"), 1, 16, False),
        (HEAD_KINDS, None, 16, True),
    ):
        plan = large_plan(shapes, lengths, what, positions, memory, parts)
        words = [", ".join(what) + (", pieces" if parts else ""), "all tokens" if positions is None else "one position"]
        sizes = [
            gib(plan.weights),
            gib(plan.activations),
            gib(plan.cache_held),
            gib(plan.peak),
            plan.store,
            gib(plan.cache_bytes),
        ]
        rows.append([*words, f"{memory}", str(len(plan.chunks)), *sizes, f"{plan.total_passes:,.0f}"])
    head = [
        "patched",
        "at",
        "memory=, GiB",
        "chunks",
        "weights",
        "activations",
        "kept at once",
        "peak",
        "kept in",
        "kept in all",
    ]
    lines = markdown([*head, "plain forwards"], rows)
    plan = large_plan(shapes, lengths, HEAD_KINDS, None, 16, True)
    passes = [[name, f"{value:,.1f}"] for name, value in plan.passes.items()]
    lines += [
        "",
        "Forwards by what is patched (each as if asked for alone):",
        "",
        *markdown(["patched", "plain forwards"], passes),
    ]
    kinds = [[kind, gib(size)] for kind, size in plan.cache.items()]
    lines += ["", "What is kept of the other model, GiB:", "", *markdown(["kind", "GiB"], kinds)]
    return [*lines, f"| W_O of every layer and the readout | {gib(plan.given_weights)} |"]


def large_plan(
    shapes: CrossShapes, lengths: list[int], what: tuple[str, ...], positions: int | None, memory: int, parts: bool
) -> CrossPlan:
    wanted = Wanted(shapes, True, what, parts=parts)
    return plan_patching(shapes, lengths, wanted, memory * 2**30, n_positions=positions, on_cpu=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="measure one case in this process and print it")
    given = parser.parse_args().case
    if given:
        case, base, tuned = json.loads(given)
        print(json.dumps(measure(case, base, tuned)))
        return
    lines = ["# The plan of cross-model patching", "", "`python benchmarks/cmap_plan.py`", "", machine(), ""]
    lines += [
        "Planned from the sizes in config.json and the prompts' lengths; measured in a process of its own, over its size",
        "before the first model is loaded. One model is in memory at a time. `counted`: what the runs did, in the plan's",
        "units; `measured`: processor seconds of the giver's and the taker's runs over those of a plain run of the same",
        "prompts. The plan does not count reading what was kept, attention's products over positions, the readout, nor",
        "norms and activation functions. Weights are mapped from their file, so that rows of the embedding that no prompt",
        "uses (16 and 62 MiB at most here) need not be read: measured memory can fall short of the plan by as much.",
        "",
        *checked(),
        "",
        "## Two models of 8 billion weights",
        "",
        f"Llama's shape (32 layers, 32 heads, 8 value heads, width 4096), bfloat16, {N_LARGE} prompts of 30 to 60 tokens, from",
        "sizes alone. GiB. Two such models in memory together would take twice the weights.",
        "",
        *planned(),
        "",
    ]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
