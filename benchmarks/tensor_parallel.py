"""A model split over processes: bytes of weights and of activations a process, what crosses between them, the same numbers.

    python benchmarks/tensor_parallel.py      # writes benchmarks/results/TENSOR_PARALLEL.md

A random-weight Llama is saved in 16 bits and loaded by 1, 2 and 4 processes in float32 (gloo, one thread each). Weights are
counted; activations are the rise of the largest resident set over its size once the model is loaded and a tiny run has been
made. The last table is a plan, from shapes alone: for models that are too large to measure here.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from attribution import reset_peak, resident, rise
from common import machine, markdown, random_task

import circuitdisc as cd
from circuitdisc.discovery.registry import ALGORITHMS, SearchContext
from circuitdisc.engine.gradients.memory import Gradient, Shapes, peak_bytes
from circuitdisc.engine.patching import Patching
from circuitdisc.identity import hash_model
from circuitdisc.models import Model
from circuitdisc.models.families.llama import FAMILY
from circuitdisc.models.families.reader import read_module
from circuitdisc.models.split import SplitComponents, own_bytes, planned_bytes

RESULTS = Path(__file__).parent / "results" / "TENSOR_PARALLEL.md"
SIZES: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 704,
    "vocab_size": 8000, "max_position_embeddings": 512,
}  # fmt: skip
LARGE: dict[str, dict[str, Any]] = {
    "8B": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256,
    },
    "70B": {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "vocab_size": 128256,
    },
}  # fmt: skip
PROMPTS, LENGTH = 8, 16


def measure(folder: Path, rank: int, n: int) -> dict[str, Any]:
    """What one process has and takes, in this process, which must be fresh."""
    if n > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting{n}", rank=rank, world_size=n)
    model = cd.load_model(folder, parallel={"tensor": n})
    crossing = _count(model) if n > 1 else [0]
    found: dict[str, Any] = {"weights": own_bytes(model.components), "identity": hash_model(model)}
    for name, work in (("eap_ig", eap_ig), ("exact", prepared)):
        work(model, 2, 4)
        gc.collect()
        before, crossing[0] = resident(), 0
        reset_peak()
        values = work(model, PROMPTS, LENGTH)
        found[name] = {"activations": rise(before), "crosses": crossing[0], "values": values}
    return found


def eap_ig(model: Model, n: int, length: int) -> list[float]:
    found = ALGORITHMS["eap_ig"].function(
        model, random_task(model, n, length, 1), cd.Ablation("resample"), SearchContext(metric="logit_diff", memory="8GiB")
    )
    assert found.edge_scores is not None
    return found.edge_scores[model.graph.edge_mask].tolist()


def prepared(model: Model, n: int, length: int) -> list[float]:
    """An exact search made ready, and the full circuit run: all that its candidates share."""
    task = random_task(model, n, length, 1)
    patching = Patching(model, cd.Ablation("resample"), task.train, memory="8GiB")
    logits = [patching.circuit_logits(chunk, model.graph.edge_mask)[:, :100] for chunk in patching.hold(task.train)]
    return torch.cat(logits).flatten().tolist()


def _count(model: Model) -> list[int]:
    """A counter of the bytes of what is summed and gathered."""
    total, whole = [0], SplitComponents._whole

    def counted(self: SplitComponents, shares: torch.Tensor, *rest: Any) -> torch.Tensor:
        out = whole(self, shares, *rest)
        total[0] += out.numel() * out.element_size()
        return out

    setattr(SplitComponents, "_whole", counted)  # noqa: B010
    return total


def started(folder: Path, n: int) -> list[dict[str, Any]]:
    """Every process's figures."""
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144",
    }  # fmt: skip
    command = [sys.executable, __file__, "--measure", str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(n)], env=env, stdout=subprocess.PIPE, text=True) for rank in range(n)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def plans() -> list[list[str]]:
    """Weights and activations a process of large models, in 16 bits."""
    rows = []
    for name, sizes in LARGE.items():
        with torch.device("meta"):
            module: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, dtype=torch.bfloat16))
            module = module.to(torch.bfloat16)
            spec, weights = read_module(module, FAMILY)
        shapes = Shapes(spec, sizes["intermediate_size"], True, True, 2, all_columns=False, on_cpu=False)
        senders = spec.graph().n_senders * spec.d_model * 2
        for n in (1, 2, 4, 8):
            cells = (
                planned_bytes(spec, weights, n),
                peak_bytes(shapes, 1, 20, Gradient(rows=5)),
                peak_bytes(shapes, 20, 20, Gradient(rows=5)),
                5 * senders * 20,
            )
            rows.append([name, str(n), *(f"{cell / 2**30:.1f}" for cell in cells)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), *map(int, args.measure[1:]))))
        sys.stdout.flush()
        os._exit(0)  # without torch's goodbyes, which wait for each other
    rows = []
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        module: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
        module = module.to(torch.bfloat16)
        module.save_pretrained(name)
        spec, weights = read_module(module.float(), FAMILY)
        found = {n: started(Path(name), n) for n in (1, 2, 4)}
    for n, processes in found.items():
        for work in ("eap_ig", "exact"):
            values, truth = (np.array(some[0][work]["values"]) for some in (processes, found[1]))
            rows.append(
                [
                    str(n),
                    work,
                    f"{processes[0]['weights'] / 2**20:.1f}",
                    f"{planned_bytes(spec, weights, n) / 2**20:.1f}",
                    f"{max(process[work]['activations'] for process in processes) / 2**20:.0f}",
                    f"{processes[0][work]['crosses'] / 2**20:.1f}",
                    f"{np.abs(values - truth).max() / np.abs(truth).max():.0e}",
                    "same" if processes[0]["identity"] == found[1][0]["identity"] else "another",
                ]
            )
    headers = [
        "processes", "work", "weights a process, MiB", "planned, MiB", "activations a process, MiB", "crosses, MiB",
        "largest difference", "identity",
    ]  # fmt: skip
    large = ["model", "processes", "weights", "eap_ig, 1 prompt", "eap_ig, 20 prompts", "exact, 1 prompt"]
    text = "\n".join(
        [
            "# A model split over processes",
            "",
            "`python benchmarks/tensor_parallel.py` writes this page.",
            "",
            f"A Llama with {SIZES['num_hidden_layers']} layers, {SIZES['num_attention_heads']} heads, "
            f"{SIZES['num_key_value_heads']} of keys and values, width {SIZES['hidden_size']}, "
            f"MLP {SIZES['intermediate_size']}, vocabulary {SIZES['vocab_size']:,}; saved in bfloat16, run in float32 by "
            f"`parallel.tensor`. {PROMPTS} prompts of {LENGTH} tokens, metric logit_diff, ablation resample. `exact`: "
            "an exact search made ready, and the full circuit run. `crosses`: bytes of what is summed or gathered, whole. The "
            "largest difference is relative "
            f"to the largest value of one process, in float32. {machine()}",
            "",
            *markdown(headers, rows),
            "",
            "**Planned, not measured**, in GiB a process, in bfloat16: Llama 3's 8B and 70B shapes, prompts of 20 tokens. "
            "Weights by the plan that the table above holds against the counted ones. Activations by the plans of one process, "
            "which hold for each: they are not split, but for the gradients into heads (`eap_ig`: five points; `exact`: what "
            "all senders of a prompt take, five times over).",
            "",
            *markdown(large, plans()),
            "",
        ]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
