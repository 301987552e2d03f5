"""The plan of an attribution's memory against what it takes.

    python benchmarks/attribution_memory.py      # writes benchmarks/results/ATTRIBUTION_MEMORY.md

Random-weight models of several shapes (nothing is downloaded). Measured is the rise of the largest resident set in a process
of its own, over its size once the model is loaded and a tiny run has been made; predicted is the plan, for the examples of one
chunk. It is measured twice: with an allocator that gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_=262144), which is
what the plan counts, and with glibc's own habits, which keep freed blocks in a heap with holes. The last table is the plan
alone, for a model that is too large to measure here.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from attribution import load, make_task, reset_peak, resident, rise
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.discovery.registry import ALGORITHMS, SearchContext
from circuitdisc.engine.gradients.memory import Gradient, Shapes, buffer_bytes, examples_in_budget, peak_bytes
from circuitdisc.metrics import get_metric
from circuitdisc.models import Model, cut_hugging_face
from circuitdisc.models.weights import ModelSpec

RESULTS = Path(__file__).parent / "results" / "ATTRIBUTION_MEMORY.md"
LLAMAS: dict[str, dict[str, Any]] = {
    "llama 0.1B": {
        "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
        "intermediate_size": 2816, "vocab_size": 32000,
    },
    "llama 0.6B": {
        "hidden_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 5632, "vocab_size": 32000,
    },
}  # fmt: skip
GRADIENTS = {
    "eap": Gradient(at_full=True),
    "eap_ig": Gradient(rows=5),
    "eap_ig_activations": Gradient(rows=5, places=True),
    "atp": Gradient(at_full=True, patterns=True),
}
CASES = [
    ("gpt2 small", "float32", "eap", "logit_diff", 32, 20),
    ("gpt2 small", "float32", "eap_ig", "log_prob", 32, 20),
    ("llama 0.1B", "float32", "eap", "logit_diff", 16, 64),
    ("llama 0.1B", "float32", "eap_ig", "logit_diff", 16, 64),
    ("llama 0.6B", "bfloat16", "eap", "logit_diff", 8, 100),
    ("llama 0.6B", "bfloat16", "eap_ig", "log_prob", 8, 100),
]


def model_of(name: str, dtype: str) -> Model:
    if name == "gpt2 small":
        return load()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMAS[name], dtype=getattr(torch, dtype))
    return cut_hugging_face(
        transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval(), name=name
    )


def measure(name: str, dtype: str, algorithm: str, metric: str, n: int, length: int) -> tuple[int, int]:
    """Predicted and measured bytes, in this process, which must be fresh."""
    model = model_of(name, dtype)
    function = ALGORITHMS[algorithm].function
    context = SearchContext(metric=metric)
    function(model, make_task(model, 2, 4), cd.Ablation("resample"), context)
    task = make_task(model, n, length)
    gc.collect()
    before = resident()
    reset_peak()
    function(model, task, cd.Ablation("resample"), context)
    shapes, gradient = Shapes.of(model.components, get_metric(metric)), GRADIENTS[algorithm]
    chunk = examples_in_budget(shapes, 2**40, task.train, gradient, None)
    return peak_bytes(shapes, chunk, length, gradient), rise(before)


def in_a_process(case: tuple, threads: int, gives_back: bool) -> tuple[int, int]:
    command = [sys.executable, __file__, "--threads", str(threads), "--case", *(str(one) for one in case)]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "262144"} if gives_back else {})}
    words = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return int(words[-2]), int(words[-1])


def eight_billion() -> Shapes:
    spec = ModelSpec(
        n_layers=32, n_heads=32, n_kv_heads=8, d_model=4096, d_head=128, d_vocab=128256, d_vocab_out=128256, n_ctx=8192,
        norm="rms", eps=1e-5, activation="silu", attn_scale=(1.0,) * 32,
    )  # fmt: skip
    return Shapes(spec, d_mlp=14336, gated=True, rotary=True, itemsize=2, all_columns=False, on_cpu=False)


def plan_rows() -> list[list[str]]:
    """The plan for Llama 3's 8B shape in bfloat16, 20 prompts of 100 tokens, all at once and as few as one at a time."""
    shapes = eight_billion()
    weights = (2 * 128256 * 4096 + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)) * 2
    n_senders = 1 + 32 * 33
    rows = []
    for algorithm in ("eap", "eap_ig"):
        for n in (20, 4, 1):
            peak = peak_bytes(shapes, n, 100, GRADIENTS[algorithm])
            cells = (peak, weights, peak + weights, buffer_bytes(shapes, 20, 100, n_senders))
            rows.append([algorithm, str(n), *(f"{cell / 2**30:.1f}" for cell in cells)])
    return rows


def table(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    if args.case:
        print(*measure(*args.case[:4], *(int(one) for one in args.case[4:])))
        return
    rows = [
        ["model", "dtype", "algorithm", "metric", "prompts x tokens", "predicted, MiB", "measured, MiB", "predicted / measured",
         "measured with glibc's own heap, MiB"]
    ]  # fmt: skip
    for case in tqdm(CASES, unit="case"):
        predicted, measured = in_a_process(case, args.threads, gives_back=True)
        _, with_holes = in_a_process(case, args.threads, gives_back=False)
        mib = (f"{one / 2**20:.0f}" for one in (predicted, measured))
        cells = (*mib, f"{predicted / measured:.2f}", f"{with_holes / 2**20:.0f}")
        rows.append([*case[:4], f"{case[4]} x {case[5]}", *cells])
    headers = ["algorithm", "prompts at once", "activations", "weights", "both", "buffer [B, T, S, D] of all 20, not made"]
    text = "\n".join(
        [
            "# The memory of an attribution, planned and measured",
            "",
            f"`python benchmarks/attribution_memory.py --threads {args.threads}`",
            "",
            "Rise of the largest resident set in a process of its own, beside the weights; with freed blocks given back at "
            "once (MALLOC_MMAP_THRESHOLD_=262144), and with glibc's own heap, whose holes the plan does not count. "
            f"Ablation resample, random weights, examples split as on any CPU. torch {torch.__version__}, "
            f"transformers {transformers.__version__}, Python {platform.python_version()}, {platform.machine()}, "
            f"{args.threads} threads.",
            "",
            *table(rows),
            "",
            "The plan alone, in GiB, for Llama 3's 8B shape (32 layers, 32 heads, 8 of keys and values, width 4096, MLP 14336, "
            "vocabulary 128256) in bfloat16, 20 prompts of 100 tokens, metric logit_diff, on a GPU:",
            "",
            *table([headers, *plan_rows()]),
            "",
        ]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
