"""How fast circuitdisc is, as ratios of things measured in turn in one run.

    python benchmarks/speed.py                   # all parts; writes benchmarks/results/SPEED_A.md ... as rows appear
    python benchmarks/speed.py --parts a --profile
    python benchmarks/speed.py --parts a --no-peer

a  ACDC against the plain loop (one masked whole-model run for every tested edge, `plain_loop.py`) and against AutoCircuit
   1.0.1 in an environment of its own: the toy to the end, in the same order of edges; GPT-2 small's shape extrapolated from
   AutoCircuit's seconds an edge at late, middle and early blocks
b  EAP and EAP-IG against bare passes and the big buffer (`attribution.py`, which writes ATTRIBUTION.md), and AutoCircuit's
c  one circuit of 500 edges
d  cost against layers, heads, width, prompts and length, one at a time, with the growth exponent
e  on a GPU, where there is one: GPT-2 small's shape and Llama 3's 8B shape in bfloat16

All weights are random; nothing is downloaded. Beside seconds stand counts, which do not depend on the machine: tested edges,
and node evaluations (a head or an MLP on all tokens; the plain loop computes every node for every tested edge).
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import CLOCK, in_turn, machine, markdown, random_gpt2, random_task
from peers.export import export_gpt2, export_prompts, run_peer
from plain_loop import masked_run, seconds_an_edge

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.eap import eap
from circuitdisc.discovery.selection import greedy
from circuitdisc.engine.circuit_run import CircuitRun
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import METRICS, get_metric
from circuitdisc.models import Model
from circuitdisc.models.components import Components
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results"
RESAMPLE = Ablation("resample")
PROMPTS, LENGTH, LATE = 16, 16, 10
# weights larger than GPT-2's own initial ones, so that effects stand above float32's rounding
SMALL = {"initializer_range": 0.05}
TOY = {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 500, "n_positions": 32, "initializer_range": 0.2}


@dataclass(frozen=True)
class Case:
    """One line of part a."""

    name: str
    sizes: dict
    n: int
    differ_at: int | None
    metric: str
    threshold: float
    peer: str | None = None  # `whole`, `per-edge`; AutoCircuit has no ACDC by logit difference


CASES = (
    Case("4-layer toy, late", TOY, 32, LATE, "kl", 5e-4, "whole"),
    Case("4-layer toy, every position", TOY, 32, None, "kl", 5e-3, "whole"),
    Case("GPT-2 small, late", SMALL, PROMPTS, LATE, "kl", 8e-4, "per-edge"),
    Case("GPT-2 small, late", SMALL, PROMPTS, LATE, "kl", 5e-5, "per-edge"),
    Case("GPT-2 small, late", SMALL, PROMPTS, LATE, "logit_diff", 1e-2),
    Case("GPT-2 small, late", SMALL, PROMPTS, LATE, "logit_diff", 1.5e-3),
    Case("GPT-2 small, every position", SMALL, PROMPTS, None, "kl", 8e-3, "per-edge"),
    Case("GPT-2 small, every position", SMALL, PROMPTS, None, "kl", 1.5e-3, "per-edge"),
)


# --- a. ACDC -------------------------------------------------------------------------------------------------------------


def part_a(args: argparse.Namespace) -> Iterator[list[str]]:
    yield [
        "prompts differ at", "metric, threshold", "edges tested / kept", "circuitdisc, plain forwards",
        "plain loop / circuitdisc", "AutoCircuit / circuitdisc", "node evaluations, plain loop / circuitdisc", "the same edges",
    ]  # fmt: skip
    for case in CASES:
        if args.only is None or args.only in f"{case.name} {case.metric} {case.threshold:g}":
            yield acdc_row(case, args)


def acdc_row(case: Case, args: argparse.Namespace) -> list[str]:
    """One case: plain forward and masked run before and after the search, and AutoCircuit next to it."""
    model = random_gpt2(case.sizes)
    task = random_task(model, case.n, LENGTH, case.differ_at)
    metric = METRICS[case.metric]
    chunks = Patching(model, RESAMPLE, task.train).hold(task.train)
    tokens = torch.tensor([example.clean for example in task.train])
    bare: dict[str, Callable[[], object]] = {
        "forward": lambda: model.module(tokens),
        "edge": lambda: seconds_an_edge(model, chunks, model.graph.edge_mask, metric),
    }
    with torch.no_grad():
        before = in_turn(bare, 3)
        if case.sizes is TOY:
            search(model, task, case)  # short enough for a first call's costs to count
        found = profiled(lambda: search(model, task, case)) if args.profile else search(model, task, case)
        after = in_turn(bare, 3)
    forward, edge = ((before[name] + after[name]) / 2 for name in ("forward", "edge"))
    seconds, tested = found.cost.seconds, sum("edge" in line for line in found.trace)
    n_nodes = model.graph.n_layers * (model.graph.n_heads + 1)
    peer, same = against_autocircuit(case, model, task, found, args) if case.peer and not args.no_peer else ("–", "–")
    return [
        case.name,
        f"{case.metric}, {case.threshold:g}",
        f"{tested:,} / {found.circuit.n_edges:,}",
        f"{seconds / forward:,.0f} ({tested * forward / seconds:.1f} edges a forward)",
        f"{tested * edge / seconds:.1f}",
        peer,
        f"{tested * n_nodes / max(1.0, found.cost.node_evaluations):,.0f}",
        same,
    ]


def search(model: Model, task: Task, case: Case) -> Discovery:
    context = SearchContext(metric=case.metric)
    # one-sided: the rule of the other tool
    return timed(lambda: acdc(model, task, RESAMPLE, context, threshold=case.threshold, two_sided=False))


def timed(work: Callable[[], Discovery]) -> Discovery:
    """A search and the seconds that it took, which an algorithm that is called by itself does not count."""
    started = CLOCK()
    found = work()
    found.cost.seconds = CLOCK() - started
    return found


def against_autocircuit(case: Case, model: Model, task: Task, found: Discovery, args: argparse.Namespace) -> tuple[str, str]:
    """AutoCircuit's seconds over ours, all else being equal; whether it keeps the same edges."""
    graph = model.graph
    order = [
        graph.edge_name(receiver, sender)
        for group in reversed(graph.groups)
        for receiver in reversed(group)
        for sender in reversed(range(int(graph.n_upstream[receiver])))
    ]
    with tempfile.TemporaryDirectory() as folder:
        export(model, task, folder)
        if case.peer == "whole":
            peer = run_peer("whole", folder, threshold=case.threshold, order=order, threads=args.threads)
        else:
            peer = run_peer("per-edge", folder, threshold=case.threshold, edges=args.peer_edges, threads=args.threads)
    if peer is None:
        return "not installed", "–"
    if case.peer == "whole":
        kept = set(peer["kept"])
        ours = {line["edge"] for line in found.trace if line.get("kept")}
        return f"{peer['seconds'] / found.cost.seconds:,.1f}", "yes" if kept == ours else f"{len(kept ^ ours)} differ"
    ratio = peer["extrapolated_seconds"] / found.cost.seconds
    return f"{ratio:,.0f} (extrapolated, {peer['extrapolated_forwards']:,.0f} forwards)", "–"


def export(model: Model, task: Task, folder: str) -> None:
    """Hand weights and prompts over to AutoCircuit."""
    export_gpt2(model.module, folder)  # pyright: ignore[reportArgumentType]
    clean, corrupted = (torch.tensor([getattr(example, name) for example in task.train]) for name in ("clean", "corrupted"))
    right, wrong = (torch.tensor([getattr(example, name)[0][0] for example in task.train]) for name in ("answers", "wrong"))
    export_prompts(folder, clean, corrupted, right, wrong)


def profiled(work: Callable[[], Discovery]) -> Discovery:
    """Run a search and print where its time goes, by kind of node."""
    spent: dict[str, float] = {}

    def watched(owner: type, name: str, label: str) -> None:
        function = getattr(owner, name)

        def wrapper(*arguments: object, **named: object) -> object:
            started = CLOCK()
            result = function(*arguments, **named)
            spent[label] = spent.get(label, 0.0) + CLOCK() - started
            return result

        originals.append((owner, name, function))
        setattr(owner, name, wrapper)

    originals: list[tuple[type, str, Callable[..., object]]] = []
    watched(Components, "mlp", "MLPs")
    watched(Components, "unembed", "unembedding")
    for name in ("read", "pattern", "head_output"):
        watched(Components, name, "heads")
    watched(CircuitRun, "_run", "run at the start of each group (nodes counted above, too)")
    try:
        found = work()
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {seconds / found.cost.seconds:6.1%}  {label}", file=sys.stderr)
    return found


# --- b. attribution ------------------------------------------------------------------------------------------------------


def part_b(args: argparse.Namespace) -> Iterator[list[str]]:
    """`attribution.py` measures ours; here only AutoCircuit's, on the same shape."""
    subprocess.run([sys.executable, str(Path(__file__).parent / "attribution.py"), "--threads", str(args.threads)], check=True)
    yield ["AutoCircuit's attribution, GPT-2 small, 32 x 20 tokens", "plain forwards", "peak over its model, GiB"]
    if args.no_peer:
        return
    model = random_gpt2(SMALL)
    task = random_task(model, 32, 20, None)
    with tempfile.TemporaryDirectory() as folder:
        export(model, task, folder)
        for mode, options in (("eap", {}), ("eap-ig", {"steps": 5})):
            peer = run_peer(mode, folder, threads=args.threads, **options)  # pyright: ignore[reportArgumentType]
            if peer is None:
                yield [mode, "not installed", "–"]
            else:
                yield [mode, f"{peer['forwards']:,.0f}", f"{(peer['peak_bytes'] - peer['peak_bytes_before']) / 2**30:.1f}"]


# --- c. one circuit ------------------------------------------------------------------------------------------------------


def part_c(args: argparse.Namespace) -> Iterator[list[str]]:
    yield ["one circuit of 500 edges, GPT-2 small", "circuitdisc, plain forwards", "masked whole-model run / circuitdisc"]
    for name, differ_at in (("prompts differ late", LATE), ("prompts differ at every position", None)):
        yield circuit_row(name, differ_at, args.repetitions)


@torch.no_grad()
def circuit_row(name: str, differ_at: int | None, repetitions: int) -> list[str]:
    model = random_gpt2(SMALL)
    task = random_task(model, PROMPTS, LENGTH, differ_at)
    scores = np.where(model.graph.edge_mask, np.random.default_rng(0).random(model.graph.edge_mask.shape), np.nan)
    mask = greedy(model.graph, scores, 500).mask
    patching = Patching(model, RESAMPLE, task.train)
    chunk = patching.hold(task.train)[0]
    tokens = torch.tensor([example.clean for example in task.train])
    difference = (patching.circuit_logits(chunk, mask) - masked_run(model, chunk, mask)).abs().max()
    assert difference < 1e-4, "the two runs of the circuit disagree"
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: model.module(tokens),
        "ours": lambda: patching.circuit_logits(chunk, mask),
        "masked": lambda: masked_run(model, chunk, mask),
    }
    seconds = in_turn(work, repetitions)
    return [name, f"{seconds['ours'] / seconds['forward']:.2f}", f"{seconds['masked'] / seconds['ours']:.1f}"]


# --- d. growth -----------------------------------------------------------------------------------------------------------

BASE = {"n_layer": 4, "n_head": 8, "n_embd": 256, "prompts": 16, "length": 16}
VARIED = {
    "n_layer": (2, 4, 8),
    "n_head": (4, 8, 16),
    "n_embd": (128, 256, 512),
    "prompts": (8, 16, 32),
    "length": (8, 16, 32),
}


def part_d(args: argparse.Namespace) -> Iterator[list[str]]:
    """Metric logit_diff; the threshold is 1/50 of the mean size of what the corrupted prompt changes."""
    yield [
        "varied",
        "values",
        "edges tested",
        "edges kept",
        "acdc, exponent",
        "acdc / plain forward",
        "eap, exponent",
        "eap / forward",
    ]
    for varied, values in VARIED.items():
        found = [growth_point({**BASE, varied: value}, args.repetitions) for value in values]
        slopes = {name: exponent(values, [point[name] for point in found]) for name in ("acdc", "eap")}
        yield [
            varied,
            ", ".join(map(str, values)),
            *(", ".join(f"{point[name]:,.0f}" for point in found) for name in ("tested", "kept")),
            f"{slopes['acdc']:.2f}",
            ", ".join(f"{point['acdc'] / point['forward']:,.0f}" for point in found),
            f"{slopes['eap']:.2f}",
            ", ".join(f"{point['eap'] / point['forward']:,.1f}" for point in found),
        ]


def growth_point(sizes: dict[str, int], repetitions: int) -> dict[str, float]:
    shape = {name: sizes[name] for name in ("n_layer", "n_head", "n_embd")}
    model = random_gpt2({**shape, "vocab_size": 1000, "initializer_range": 0.08})
    task = random_task(model, sizes["prompts"], sizes["length"], sizes["length"] // 2)
    metric = get_metric("logit_diff")
    masks = {"full": model.graph.edge_mask, "empty": np.zeros_like(model.graph.edge_mask)}
    values = Patching(model, RESAMPLE, task.train).evaluate(task.train, masks, [metric])
    gap = (values["full"][metric.name] - values["empty"][metric.name]).abs().mean().item()
    tokens = torch.tensor([example.clean for example in task.train])
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: model.module(tokens),
        "eap": lambda: eap(model, task, RESAMPLE, SearchContext(metric=metric.name)),
    }
    with torch.no_grad():
        before = in_turn(work, repetitions)
        # a context of its own for each search: a journal that holds decisions would be taken over
        context = SearchContext(metric=metric.name)
        found = timed(lambda: acdc(model, task, RESAMPLE, context, threshold=gap / 50, two_sided=True))
        after = in_turn(work, repetitions)
    seconds = {name: (before[name] + after[name]) / 2 for name in work} | {"acdc": found.cost.seconds}
    return {**seconds, "tested": sum("edge" in line for line in found.trace), "kept": found.circuit.n_edges}


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit([math.log(size) for size in sizes], [math.log(value) for value in seconds], 1)[0])


# --- e. on a GPU ---------------------------------------------------------------------------------------------------------


def part_e(args: argparse.Namespace) -> Iterator[list[str]]:
    yield ["on a GPU", "prompts x tokens", "tokens a second", "peak, GiB", "weights, GiB"]
    if not torch.cuda.is_available():
        yield ["no GPU here", "–", "–", "–", "–"]
        return
    yield from gpu_rows(torch.device("cuda"), small=False)


def gpu_rows(device: torch.device, small: bool) -> Iterator[list[str]]:
    """EAP, EAP-IG on GPT-2 small's and Llama 3's 8B shape in bfloat16. `small`: tiny ones, to try the code."""
    import transformers

    from circuitdisc.discovery.eap_ig import eap_ig
    from circuitdisc.models import cut_hugging_face

    eight_billion = {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0,
    }  # fmt: skip
    if small:
        eight_billion = {**eight_billion, "vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shapes = {
        "GPT-2 small": transformers.GPT2Config(n_layer=2 if small else 12, bos_token_id=0, eos_token_id=0),
        "Llama 8B": transformers.LlamaConfig(**eight_billion),
    }
    for name, config in shapes.items():
        with device:
            module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        model = cut_hugging_face(module, name=name)
        task = random_task(model, 20, 100, None)
        for algorithm in (eap, eap_ig):
            algorithm(model, task, RESAMPLE, SearchContext(memory="40GiB"))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = timed(partial(algorithm, model, task, RESAMPLE, SearchContext(memory="40GiB")))
            peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else math.nan
            weights = sum(value.numel() * value.element_size() for value in module.parameters()) / 2**30
            speed = 20 * 100 / found.cost.seconds
            yield [f"{name}, {algorithm.__name__}", "20 x 100", f"{speed:,.0f}", f"{peak:.1f}", f"{weights:.1f}"]


# --- the table -----------------------------------------------------------------------------------------------------------

PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d, "e": part_e}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="abcde", help="which of a, b, c, d, e")
    parser.add_argument("--only", help="of part a: only cases whose name, metric and threshold hold this text")
    parser.add_argument("--no-peer", action="store_true", help="leave AutoCircuit out")
    parser.add_argument("--peer-edges", type=int, default=6, help="edges of AutoCircuit timed at each of three depths")
    parser.add_argument("--profile", action="store_true", help="print where the time of part a goes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of SPEED_A.md, SPEED_B.md ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = "python benchmarks/speed.py " + " ".join(sys.argv[1:])
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        lines = PARTS[part](args)
        header, rows = next(lines), []
        print(f"\n{PARTS[part].__name__}\n| " + " | ".join(header) + " |", flush=True)
        for row in lines:
            rows.append(row)
            print("| " + " | ".join(row) + " |", flush=True)
            text = [f"`{command.strip()}`", "", machine(), "", *markdown(header, rows), ""]
            (args.out / f"SPEED_{part.upper()}.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
