"""What attribution costs beside bare forward and backward passes of the same model: time and memory.

    python benchmarks/attribution.py             # writes benchmarks/results/ATTRIBUTION.md
    python benchmarks/attribution.py --profile   # where the time of eap goes

GPT-2 small's shape with random weights (nothing is downloaded), 32 prompts of 20 random tokens, corrupted prompts that differ
from the second token on (so that nearly every token counts), metric logit_diff. Bare passes are the Hugging Face module's own,
without gradients for weights, with gradients for the input embeddings, in two kinds: logits at all positions, or only where
the answer is read. Times are medians of repetitions taken in turn in one process. Memory is the rise of the largest resident
set in a process of its own, over its size once the model is loaded and a tiny run has been made.
"""

import argparse
import gc
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import circuitdisc as cd
from circuitdisc.discovery.registry import ALGORITHMS, SearchContext
from circuitdisc.engine.backends import full_run
from circuitdisc.metrics import get_metric
from circuitdisc.models import Model, cut_hugging_face
from circuitdisc.tasks.base import Example, PromptBatch, Task, collate

RESULTS = Path(__file__).parent / "results" / "ATTRIBUTION.md"
STEPS = 5


def load() -> Model:
    """GPT-2 small with random weights."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config())
    return cut_hugging_face(module.eval(), name="gpt2-small-random")


def make_task(model: Model, n: int, length: int, seed: int = 0) -> Task:
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(n):
        clean, corrupted = generator.integers(0, model.d_vocab, (2, length))
        corrupted[0] = clean[0]
        right, wrong = generator.choice(model.d_vocab, 2, replace=False).tolist()
        examples.append(Example(tuple(clean.tolist()), tuple(corrupted.tolist()), (length - 1,), ((right,),), ((wrong,),)))
    return Task("random", tuple(examples), ())


# --- what is measured --------------------------------------------------------------------------------------------------


def bare_forward(model: Model, batch: PromptBatch, tokens: Tensor, all_logits: bool, gradient: bool) -> Tensor | None:
    """One pass of the Hugging Face module; with `gradient` also back to the input embeddings."""
    module: Any = model.module
    with torch.set_grad_enabled(gradient):
        embeddings = module.transformer.wte(tokens).detach().requires_grad_(gradient)
        at = (batch.read_example, batch.read_position)
        if all_logits:
            logits = module(inputs_embeds=embeddings).logits[at]
        else:
            logits = module.lm_head(module.transformer(inputs_embeds=embeddings).last_hidden_state[at])
        value = get_metric("logit_diff")(logits, batch.labels).mean()
    return torch.autograd.grad(value, embeddings)[0] if gradient else None


def bare(model: Model, task: Task, all_logits: bool, forwards: int, pairs: int) -> None:
    """So many forward passes, and so many forward and backward passes."""
    batch = collate(task.train)
    assert batch.corrupted is not None
    for index in range(forwards):
        bare_forward(model, batch, batch.corrupted if index % 2 else batch.clean, all_logits, gradient=False)
    for _ in range(pairs):
        bare_forward(model, batch, batch.clean, all_logits, gradient=True)


def ours(model: Model, task: Task, algorithm: str, **settings: object) -> np.ndarray | None:
    function = ALGORITHMS[algorithm].function
    found = function(model, task, cd.Ablation("resample"), SearchContext(metric="logit_diff"), **settings)
    return found.edge_scores


def direct_eap(model: Model, task: Task) -> np.ndarray:
    """EAP with one buffer of differences [S, B T D], and a leaf for the input of every receiver."""
    cut, graph, batch = model.components, model.graph, collate(task.train)
    assert batch.corrupted is not None
    clean, corrupted = (
        full_run(model, tokens, batch.is_token, batch.position_ids).senders for tokens in (batch.clean, batch.corrupted)
    )
    buffer = (corrupted - clean).flatten(1)
    del clean, corrupted
    scores = np.full(graph.edge_mask.shape, np.nan)

    def leaf(rows: range, x: Tensor) -> Tensor:
        inputs = (
            x.expand(len(rows), *x.shape).clone() if x.requires_grad else x.expand(len(rows), *x.shape).clone().requires_grad_()
        )
        inputs.register_hook(lambda gradient: score(rows, gradient))
        return inputs

    def score(rows: range, gradient: Tensor) -> None:
        n = int(graph.n_upstream[rows[0]])
        scores[rows[0] : rows[-1] + 1, :n] = (gradient.flatten(1) @ buffer[:n].T).numpy() / batch.n_examples

    frame = cut.frame(batch.is_token, batch.position_ids)
    x = cut.embed(batch.clean, batch.position_ids, False)[0].requires_grad_()
    n_heads, row = graph.n_heads, 0
    for layer in range(graph.n_layers):
        inputs = leaf(range(row, row + 3 * n_heads), x)[:, None]
        q, k, v = (
            cut.read(layer, qkv, range(n_heads), inputs[index * n_heads : (index + 1) * n_heads], frame)  # pyright: ignore
            for index, qkv in enumerate(("q", "k", "v"))
        )
        z = cut.pattern(layer, range(n_heads), q, k, frame) @ v
        b_O = cut.weights.layers[layer].b_O
        assert b_O is not None
        x = x + cut.head_output(layer, range(n_heads), z, frame)[:, 0].sum(0) + b_O
        x = x + cut.mlp(layer, leaf(range(row + 3 * n_heads, row + 3 * n_heads + 1), x)[0])
        row += 3 * n_heads + 1
    final = leaf(range(row, row + 1), x)[0]
    logits = cut.unembed(final[batch.read_example, batch.read_position][None])[0]
    get_metric("logit_diff")(logits, batch.labels).sum().backward()
    return scores


def work(model: Model, name: str) -> Callable[[Task], object]:
    """What is timed, by name."""
    algorithm, _, kind = name.partition(" ")
    if algorithm == "bare":
        which, passes = kind.split(" ")
        forwards, pairs = (int(one) for one in passes.split("+"))
        return lambda task: bare(model, task, which == "all", forwards, pairs)
    if algorithm == "direct":
        return lambda task: direct_eap(model, task)
    return lambda task: ours(model, task, algorithm, **({"steps": STEPS} if algorithm.startswith("eap_ig") else {}))


# --- measuring ---------------------------------------------------------------------------------------------------------


def times(model: Model, task: Task, names: list[str], repetitions: int) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name in names:
            call = work(model, name)
            started = time.perf_counter()
            call(task)
            if repetition:
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in found.items()}


def resident() -> int:
    """Bytes of the resident set now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Forget the largest resident set so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def rise(before: int) -> int:
    """Bytes by which the largest resident set since `reset_peak` exceeds `before`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 - before


def peak_of(name: str, n: int, length: int) -> int:
    """Rise of the largest resident set while one of them runs once: in this process, which must be fresh."""
    model = load()
    call = work(model, name)
    call(make_task(model, 2, 4))
    gc.collect()
    before = resident()
    reset_peak()
    call(make_task(model, n, length))
    return rise(before)


def peaks(names: list[str], n: int, length: int, threads: int) -> dict[str, int]:
    found = {}
    for name in names:
        command = [
            sys.executable,
            __file__,
            "--peak-of",
            name,
            "--n",
            str(n),
            "--length",
            str(length),
            "--threads",
            str(threads),
        ]
        found[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return found


def profile(model: Model, task: Task, name: str) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    call = work(model, name)
    call(task)
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        call(task)
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32, help="prompts")
    parser.add_argument("--length", type=int, default=20, help="tokens a prompt")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--profile", nargs="?", const="eap", metavar="NAME", help="print where the time goes, and stop")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    if args.peak_of:
        print(peak_of(args.peak_of, args.n, args.length))
        return
    model = load()
    task = make_task(model, args.n, args.length)
    if args.profile:
        profile(model, task, args.profile)
        return
    ig_passes = f"2+{STEPS}"
    timed = ["bare all 1+1", "bare read 1+1", "eap", "direct", f"bare all {ig_passes}", f"bare read {ig_passes}", "eap_ig"]
    seconds = times(model, task, timed, args.repetitions)
    memory = peaks(["bare all 0+1", "bare read 0+1", "eap", "eap_ig", "direct"], args.n, args.length, args.threads)
    difference = float(np.nanmax(np.abs(ours(model, task, "eap") - direct_eap(model, task))))  # pyright: ignore
    scale = float(np.nanmax(np.abs(direct_eap(model, task))))
    text = page(args, seconds, memory, difference / scale, ig_passes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


def page(args: argparse.Namespace, seconds: dict[str, float], memory: dict[str, int], difference: float, ig_passes: str) -> str:
    def ratio(name: str, base: str) -> str:
        return f"{seconds[name] / seconds[base]:.2f}"

    def share(name: str, base: str) -> str:
        return f"{memory[name] / memory[base]:.2f}"

    rows = [
        ["what", "seconds", "over bare, all logits", "over bare, answer's logits"],
        ["---"] * 4,
        ["eap", f"{seconds['eap']:.2f}", ratio("eap", "bare all 1+1"), ratio("eap", "bare read 1+1")],
        [
            "eap with a big buffer", f"{seconds['direct']:.2f}", ratio("direct", "bare all 1+1"),
            ratio("direct", "bare read 1+1"),
        ],
        [
            f"eap_ig, {STEPS} steps", f"{seconds['eap_ig']:.2f}", ratio("eap_ig", f"bare all {ig_passes}"),
            ratio("eap_ig", f"bare read {ig_passes}"),
        ],
    ]  # fmt: skip
    rows += [[name, f"{value:.2f}", "", ""] for name, value in seconds.items() if name.startswith("bare")]
    space = [
        ["what", "MiB", "over bare, all logits", "over bare, answer's logits"],
        ["---"] * 4,
        *(
            [name.replace("direct", "eap with a big buffer"), f"{memory[name] / 2**20:.0f}", share(name, "bare all 0+1"),
             share(name, "bare read 0+1")]
            for name in memory
        ),
    ]  # fmt: skip

    def table(lines: list[list[str]]) -> list[str]:
        return ["| " + " | ".join(cells) + " |" for cells in lines]

    return "\n".join(
        [
            "# Attribution beside bare passes",
            "",
            f"`python benchmarks/attribution.py --n {args.n} --length {args.length} --repetitions {args.repetitions} "
            f"--threads {args.threads}`",
            "",
            f"GPT-2 small's shape, random weights, float32, {args.n} prompts of {args.length} random tokens, corrupted prompts "
            "that differ from the second token on, ablation resample, metric logit_diff. Bare passes are the Hugging Face "
            "module's (its default attention), without gradients for weights, back to the input embeddings, with logits at all "
            "positions or at the answer's alone, all prompts in one batch. `a+b` stands for a forward passes and b "
            "forward and backward passes: eap needs 1+1 (two forward, one backward), eap_ig 2+5. Medians, taken in turn. "
            f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, {args.threads} threads.",
            "",
            *table(rows),
            "",
            "Rise of the largest resident set, each in a process of its own:",
            "",
            *table(space),
            "",
            f"Scores of eap and of the implementation with a big buffer differ by {difference:.1e} of the largest.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
