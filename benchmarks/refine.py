"""`refine` against what it begins with and against `bisect`, at equal faithfulness, on shipped models: size and passes.

    python benchmarks/refine.py      # writes benchmarks/results/REFINE.md

Every circuit is to keep the same share of the gap in the task's metric between full model and empty circuit. `eap_ig target=`
chooses its size on a quarter of the search examples that it does not score on; the others keep the share on all of these. All
are judged on the same held-out examples, beside random circuits of the same size. A pass is a plain forward pass of the whole
model over the search examples; a backward pass counts as two, and nodes computed as a share of the model's.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.scoring.base import Scores

RESULTS = Path(__file__).parent / "results" / "REFINE.md"
HEADERS = [
    "task", "ablation", "share", "algorithm", "edges", "on search examples", "held out", "inside", "random, held out",
    "candidates", "passes",
]  # fmt: skip
CASES = (("tpp/lightweight", "tpp", "mean"), ("multitask/base", "ioi", "resample"))


def searches(keep: float) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Label, algorithm and settings; `edges` and `start` may name an earlier label, whose size or circuit is taken."""
    yield "eap_ig, target", "eap_ig", {"target": keep}
    yield "bisect", "bisect", {"keep": keep}
    yield "refine, from eap_ig", "refine", {"keep": keep}
    yield "eap_ig, as large as refine's", "eap_ig", {"edges": "refine, from eap_ig"}
    yield "refine, from bisect", "refine", {"keep": keep, "start": "bisect"}


def shown(scores: Scores, split: str) -> str:
    score = scores.get("faithfulness", split)
    if score.value is None or score.low is None or score.high is None:
        return "undefined"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def rows(name: str, task_name: str, ablation: str, keep: float, args: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    model = cd.load_model(name)
    task = cd.load_task(task_name, model, n=args.n, n_heldout=args.n_heldout, seed=args.seed)
    n_nodes = model.graph.n_layers * (model.graph.n_heads + model.graph.has_mlp)
    circuits: dict[str, cd.Circuit] = {}
    for label, algorithm, settings in tqdm(list(searches(keep)), desc=f"{task_name}, {keep:g}"):
        given = dict(settings)
        if given.get("start") in circuits:
            path = folder / f"{task_name} {keep:g}.json"
            circuits[given["start"]].save(path)
            given["start"] = str(path)
        if given.get("edges") in circuits:
            given["edges"] = circuits[given["edges"]].n_edges
        found = cd.discover(model, task, algorithm, ablation=ablation, **given)
        circuits[label] = found.circuit
        scores = cd.score(model, task, found.circuit, ablation=ablation, n_random=args.controls)
        controls = [value for value in scores.get("faithfulness").controls if value is not None]
        heldout, cost = scores.get("faithfulness", "heldout").value, found.cost
        passes = cost.model_runs + 2 * cost.backward_runs + cost.node_evaluations / n_nodes
        inside = "–" if heldout is None or "edges" in given else "yes" if keep <= heldout <= 2 - keep else "no"
        size = f"{found.circuit.n_edges} of {given['edges']}" if "edges" in given else str(found.circuit.n_edges)
        yield [
            task_name, ablation, f"{keep:g}", label, size, shown(scores, "train"), shown(scores, "heldout"), inside,
            f"at most {max(controls):.2f}" if controls else "–", f"{cost.candidates:,}", f"{passes:,.0f}",
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[task for _, task, _ in CASES], default=[task for _, task, _ in CASES])
    parser.add_argument("--n", type=int, default=40, help="examples searched on")
    parser.add_argument("--n-heldout", type=int, default=300)
    parser.add_argument("--controls", type=int, default=10, help="random circuits beside each")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9])
    parser.add_argument("--seed", type=int, default=0, help="of the examples")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in [case for case in CASES if case[1] in args.tasks]:
            for keep in args.shares:
                for row in rows(*case, keep, args, Path(folder)):
                    table.append(row)
                    args.out.write_text(page(args, table), encoding="utf-8")
    print(page(args, table))


def page(args: argparse.Namespace, table: list[list[str]]) -> str:
    models = ", ".join(f"{name} ({cd.load_model(name).graph.n_edges:,} edges)" for name, task, _ in CASES if task in args.tasks)
    text = [
        "# refine against eap_ig and bisect, at equal faithfulness",
        "",
        " ".join(["`python benchmarks/refine.py", *sys.argv[1:]]) + "`",
        "",
        f"Models {models}; {args.n} search and {args.n_heldout} held-out examples. `share`: of the gap in the metric between "
        "full model and empty circuit, to be kept. Faithfulness with 95 % intervals; `inside`: held-out faithfulness lies from "
        f"the share to 2 minus the share; {args.controls} random circuits with as many edges between the same layers. `n of m "
        "edges`: m were chosen, and the rest leads nowhere. `candidates`: circuits whose metric was measured, but for sizes "
        "by `target`. `passes`: plain forwards over the search examples. " + machine(),
        "",
        *markdown(HEADERS, table),
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
