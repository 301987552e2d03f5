"""Times AutoCircuit's own ACDC and attribution. Run by the python of `environment.make_environment`, never by ours.

    .venv-autocircuit/bin/python benchmarks/peers/autocircuit_acdc.py FOLDER --mode whole --threshold 5e-4 --out result.json

FOLDER holds `weights.safetensors` (names of a HookedTransformer's state dict), `config.json` and `prompts.json`, as
`export.py` writes them. Weights are used as they are: nothing is folded or centred.

AutoCircuit's convention, read off its source (1.0.1):

- `acdc_prune_scores` sorts the edges by the layer of their receiver, latest first. Within a layer they keep the order of a
  Python set, so it changes from process to process, and the result with it; PYTHONHASHSEED alone does not fix it (nodes hash
  None, by its address before Python 3.12). `--order` gives an order instead.
- It has two metrics, `kl_div` (KL from the clean model's last position, mean over prompts) and `mse` of the logits. It has no
  logit difference.
- An edge is removed if (metric with it cut) - (metric before) < tau: a fall always removes. The metric after the last
  removal is the next baseline.
- Edges into nodes that no longer reach the output are tested all the same. Only the first batch is used: here, all prompts.
- By default it runs from the start for each of 20 values of tau (5 bases x 4 exponents). Here it runs for one.
- An edge is tested by a run from the block of its receiver on (the residual before that block is stored), with all senders'
  outputs stacked; the unembedding runs at all positions.

"Plain forward" is one forward of all prompts through the same HookedTransformer as TransformerLens makes it, without the
switches that AutoCircuit needs (separate head results, separate q, k, v inputs) and without its wrappers.
"""

import argparse
import contextlib
import inspect
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos import ACDC, mask_gradient
from auto_circuit.types import Edge, PruneScores
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import multibatch_kl_div
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

SWITCHES = ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    bench = Bench(args.folder, args.forwards)
    result = bench.facts() | {"mode": args.mode, "threads": torch.get_num_threads()}
    if args.mode == "whole":
        result |= whole(bench, args.threshold, args.metric, args.order)
    elif args.mode == "per-edge":
        result |= per_edge(bench, args.positions.split(","), args.edges, args.threshold, args.metric)
    else:
        result |= attribution(bench, args.steps if args.mode == "eap-ig" else None)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times AutoCircuit on an exported model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=("whole", "per-edge", "eap", "eap-ig"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=5e-4, help="tau, for whole and per-edge")
    parser.add_argument("--metric", choices=("kl_div", "mse"), default="kl_div", help="for whole and per-edge")
    parser.add_argument("--order", type=Path, help="whole: JSON list of all edges, such as m2->a7.h0<v>, in the order to visit")
    parser.add_argument("--positions", default="late,middle,early", help="per-edge: which blocks")
    parser.add_argument("--edges", type=int, default=6, help="per-edge: edges timed at each position")
    parser.add_argument("--steps", type=int, default=5, help="eap-ig: its integrated_grad_samples")
    parser.add_argument("--forwards", type=int, default=5, help="plain forwards timed before, and again after")
    return parser.parse_args()


class Bench:
    """The exported model, plain and wrapped by AutoCircuit with the same weights, and the prompts."""

    def __init__(self, folder: Path, n_forwards: int) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
        self.n_forwards = n_forwards
        self.clean, self.corrupted = torch.tensor(prompts["clean"]), torch.tensor(prompts["corrupted"])
        pairs = PromptDataset(
            self.clean,
            self.corrupted,
            [torch.tensor([token]) for token in prompts["answers"]],
            [torch.tensor([token]) for token in prompts["wrong"]],
        )
        self.loader = PromptDataLoader(pairs, seq_len=None, diverge_idx=0, batch_size=len(self.clean), shuffle=False)
        self.plain = hooked_transformer(config, weights, switches=False)
        self.model: PatchableModel = patchable_model(
            hooked_transformer(config, weights, switches=True),
            factorized=True,
            slice_output="last_seq",
            seq_len=None,
            separate_qkv=True,
        )
        with torch.inference_mode():
            logits = self.plain(self.clean)[:, -1]
            self.difference = (self.model(self.clean)[:, -1] - logits).abs().max().item()
        save_file({"logits": logits[0].contiguous()}, folder / "autocircuit_logits.safetensors")

    def forward_seconds(self) -> float:
        """One plain forward of all prompts."""
        with torch.inference_mode():
            start = time.process_time()
            self.plain(self.clean)
            return time.process_time() - start

    def forwards(self) -> list[float]:
        """Several, one after another; one more that is not counted goes before."""
        return [self.forward_seconds() for _ in range(self.n_forwards + 1)][1:]

    def facts(self) -> dict:
        packages = {"auto_circuit": "auto-circuit", "transformer_lens": "transformer-lens", "torch": "torch"}
        thresholds = inspect.signature(ACDC.acdc_prune_scores).parameters
        return {
            "versions": {"python": platform.python_version()} | {key: version(name) for key, name in packages.items()},
            "batch": self.clean.shape[0],
            "tokens": self.clean.shape[1],
            "n_edges": self.model.n_edges,
            "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
            "load_average": os.getloadavg()[0],
            "default_thresholds": len(thresholds["tao_exps"].default) * len(thresholds["tao_bases"].default),
            "wrapped_max_difference": self.difference,
        }


def hooked_transformer(config: dict, weights: dict[str, Tensor], switches: bool) -> HookedTransformer:
    """The exported weights, shared and not copied, in a HookedTransformer without gradients (as AutoCircuit loads its own)."""
    attn_only = config["d_mlp"] is None
    model = HookedTransformer(
        HookedTransformerConfig(
            **config, attn_only=attn_only, init_weights=False, device="cpu", **dict.fromkeys(SWITCHES, switches)
        )
    )
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in missing if not name.endswith(("attn.mask", "attn.IGNORE"))]
    if missing or unexpected:
        raise SystemExit(f"weights.safetensors lacks {missing} and has {unexpected} too many")
    return model.eval().requires_grad_(False)


class Clock:
    """Takes the place of the progress bars in AutoCircuit's ACDC and times each pass of its loop over edges from outside:
    from handing out an edge until the next is asked for. So the loop that is timed is AutoCircuit's, unchanged."""

    def __init__(self, between: Callable[[], object] | None = None) -> None:
        self.between = between
        self.edges: list[tuple[Edge, float]] = []
        self.pauses = 0.0

    def bar(self, items) -> "Clock.Bar":
        return Clock.Bar(self, items)

    class Bar:
        def __init__(self, clock: "Clock", items) -> None:
            self.clock, self.items = clock, items

        def set_description_str(self, *_args, **_kwargs) -> None:
            pass

        def __iter__(self) -> Iterator:
            for item in self.items:
                start = time.process_time()
                yield item
                end = time.process_time()
                if isinstance(item, Edge):  # the outer loop goes over thresholds
                    self.clock.edges.append((item, end - start))
                    if self.clock.between is not None:
                        self.clock.between()
                        self.clock.pauses += time.process_time() - end


@contextlib.contextmanager
def clocked(module, clock: Clock) -> Iterator[None]:
    before = module.tqdm
    module.tqdm = clock.bar
    try:
        yield
    finally:
        module.tqdm = before


def run_acdc(bench: Bench, clock: Clock, threshold: float, metric: str) -> tuple[PruneScores, float]:
    """AutoCircuit's ACDC for one threshold: threshold x 10^0. Returns its scores and seconds, without the clock's pauses."""
    with clocked(ACDC, clock):
        start = time.process_time()
        scores = ACDC.acdc_prune_scores(
            bench.model, bench.loader, None, tao_exps=[0], tao_bases=[threshold], faithfulness_target=metric
        )
        seconds = time.process_time() - start - clock.pauses
    return scores, seconds


def whole(bench: Bench, threshold: float, metric: str, order: Path | None) -> dict:
    """One ACDC run to the end."""
    if order is not None:
        by_name = {mib_name(edge): edge for edge in bench.model.edges}
        names = json.loads(order.read_text(encoding="utf-8"))
        if sorted(names) != sorted(by_name):
            raise SystemExit(f"{order} does not list each of the {len(by_name):,} edges once")
        bench.model.edges = [by_name[name] for name in names]  # its sort by layer keeps the order of equals
    before = bench.forwards()
    clock = Clock()
    scores, seconds = run_acdc(bench, clock, threshold, metric)
    after = bench.forwards()
    kept = [edge for edge, _ in clock.edges if torch.isinf(edge.prune_score(scores))]  # removed edges score tau
    # The masks are left as the run ended, so a whole forward with them gives the metric of the circuit found.
    with torch.inference_mode():
        clean = bench.model(bench.clean)[bench.model.out_slice].log_softmax(-1)
        with patch_mode(bench.model, src_ablations(bench.model, bench.corrupted)):
            kl = multibatch_kl_div(bench.model(bench.clean)[bench.model.out_slice].log_softmax(-1), clean).item()
    return {
        "threshold": threshold,
        "metric": metric,
        "order": "set order" if order is None else "given",
        "seconds": seconds,
        "edges_tested": len(clock.edges),
        "edges_kept": len(kept),
        "kept": [mib_name(edge) for edge in kept],
        "kept_own_names": [edge.name for edge in kept],
        "kl_of_circuit": kl,
        "setup_seconds": seconds - sum(taken for _, taken in clock.edges),
        "seconds_per_edge": sum(taken for _, taken in clock.edges) / len(clock.edges),
    } | forward_facts(before, after, seconds)


def per_edge(bench: Bench, positions: list[str], n_timed: int, threshold: float, metric: str) -> dict:
    """A few passes of its loop at late, middle and early blocks, and what all edges would take.

    `acdc_prune_scores` loops over `model.edges`, so with only a few edges there it visits these alone, by its own code and
    with its own set-up. What a pass costs depends on the block its run starts at and not on the masks: the sums over senders
    are dense. The first edge of each block is not counted (it warms up). A plain forward is timed after every edge.
    """
    n_layers = bench.model.cfg.n_layers
    blocks = {"late": n_layers - 1, "middle": n_layers // 2, "early": 0}
    if unknown := set(positions) - set(blocks):
        raise SystemExit(f"--positions knows {', '.join(blocks)}, not {', '.join(sorted(unknown))}")
    all_edges = sorted(bench.model.edges, key=lambda edge: (-edge.dest.layer, edge.dest.name, edge.src.src_idx))
    count = {block: sum(start_block(edge) == block for edge in all_edges) for block in range(n_layers)}
    chosen: list[Edge] = []
    for block in sorted({blocks[position] for position in positions}):
        there = [edge for edge in all_edges if start_block(edge) == block]
        chosen += [there[index] for index in sorted({*np.linspace(0, len(there) - 1, n_timed + 1).astype(int).tolist()})]
    before, between = bench.forwards(), []
    clock = Clock(between=lambda: between.append(bench.forward_seconds()))
    whole_graph, bench.model.edges = bench.model.edges, set(chosen)
    try:
        _, seconds = run_acdc(bench, clock, threshold, metric)
    finally:
        bench.model.edges = whole_graph
    after = bench.forwards()
    taken: dict[int, list[float]] = {}
    for edge, time_taken in clock.edges:
        taken.setdefault(start_block(edge), []).append(time_taken)
    typical = {block: median(times[1:] or times) for block, times in sorted(taken.items())}
    forward = median([*before, *between, *after])
    setup = seconds - sum(time_taken for _, time_taken in clock.edges)
    at_block = np.interp(range(n_layers), list(typical), list(typical.values()))
    weighted = setup + sum(float(at_block[block]) * count[block] for block in range(n_layers))
    mean = setup + bench.model.n_edges * sum(typical.values()) / len(typical)
    return {
        "threshold": threshold,
        "metric": metric,
        "seconds": seconds,
        "setup_seconds": setup,
        "edges_tested": len(clock.edges),
        "positions": {
            position: {
                "block": blocks[position],
                "edges_timed": len(taken[blocks[position]][1:]),
                "seconds_per_edge": typical[blocks[position]],
                "forwards_per_edge": typical[blocks[position]] / forward,
            }
            for position in positions
        },
        "edges_by_start_block": [count[block] for block in range(n_layers)],
        "extrapolated_seconds": weighted,
        "extrapolated_forwards": weighted / forward,
        "extrapolated_seconds_unweighted": mean,
        "extrapolated_forwards_unweighted": mean / forward,
    } | forward_facts(before, after, None, between)


def attribution(bench: Bench, steps: int | None) -> dict:
    """EAP (gradient of the logit difference at the full model), or EAP-IG with `steps` intervals: steps + 1 passes."""
    before, memory_before = bench.forwards(), peak_memory()
    options = {"mask_val": 0.0} if steps is None else {"integrated_grad_samples": steps}
    with clocked(mask_gradient, Clock()):
        start = time.process_time()
        scores = mask_gradient.mask_gradient_prune_scores(
            bench.model, bench.loader, None, grad_function="logit", answer_function="avg_diff", **options
        )
        seconds = time.process_time() - start
    memory = peak_memory()
    after = bench.forwards()
    flat = {mib_name(edge): edge.prune_score(scores).item() for edge in bench.model.edges}
    top = sorted(flat, key=lambda name: -abs(flat[name]))[:20]
    return {
        "steps": steps,
        "seconds": seconds,
        "peak_bytes": memory,
        "peak_bytes_before": memory_before,
        "top_edges": {name: flat[name] for name in top},
    } | forward_facts(before, after, seconds)


def forward_facts(
    before: list[float], after: list[float], seconds: float | None, between: list[float] | None = None
) -> dict[str, float]:
    forward = median([*before, *(between or []), *after])
    found = {"forward_seconds": forward, "forward_seconds_before": median(before), "forward_seconds_after": median(after)}
    return found if seconds is None else found | {"forwards": seconds / forward}


def start_block(edge: Edge) -> int:
    """The block that ACDC's run starts at for this edge, read off the receiver's name as ACDC does."""
    return int(edge.dest.module_name.split(".")[1])


def mib_name(edge: Edge) -> str:
    """`MLP 2->A7.0.V` is written `m2->a7.h0<v>`, as in EAP-IG and MIB."""
    return f"{_node(edge.src.name)}->{_node(edge.dest.name)}"


def _node(name: str) -> str:
    if name in ("Resid Start", "Resid End"):
        return "input" if name == "Resid Start" else "logits"
    if name.startswith("MLP "):
        return "m" + name.removeprefix("MLP ")
    layer, head, *letter = name.removeprefix("A").split(".")
    return f"a{layer}.h{head}" + "".join(f"<{qkv.lower()}>" for qkv in letter)


def peak_memory() -> int:
    """Most bytes ever resident, of this process alone: getrusage on Linux may count the process that started this one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
