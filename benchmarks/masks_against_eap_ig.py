"""Learned masks against `eap_ig` and `information_flow` at equal numbers of edges: held-out faithfulness, KL, cost.

    python benchmarks/masks_against_eap_ig.py      # writes benchmarks/results/MASKS.md

Every algorithm searches the same train examples and is judged on the same held-out ones, as a hard circuit. `edge_pruning` is
trained anew for every size; `soft_topk`, `information_flow` and `eap_ig` are run once and give all sizes from one ranking.
Masks follow the KL to the full model, or with `loss=metric` the logit difference, which is also what `eap_ig` scores. A size is
what was asked for: edges that lead nowhere are left out. `subnetwork_probing` chooses its size by its price: it is run at
several, and `eap_ig` gives as many edges as it kept.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.models import Model
from circuitdisc.scoring.base import Scores
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results" / "MASKS.md"
RANKINGS = ("eap_ig", "information_flow", "soft_topk", "soft_topk, loss=metric")
TRAINED_FOR_SIZE = ("edge_pruning", "edge_pruning, loss=metric")
HEADERS = [
    "ablation",
    "edges asked",
    "algorithm",
    "edges",
    "faithfulness, held out",
    "KL, held out",
    "faithfulness, train",
    "seconds",
]


@dataclass
class Row:
    """One circuit and how it does."""

    ablation: str
    asked: int
    algorithm: str
    edges: int
    scores: Scores
    seconds: float

    def cells(self) -> list[str]:
        return [
            self.ablation,
            str(self.asked),
            self.algorithm,
            str(self.edges),
            shown(self.scores, "faithfulness"),
            shown(self.scores, "kl"),
            shown(self.scores, "faithfulness", "train"),
            f"{self.seconds:.0f}",
        ]


def shown(scores: Scores, name: str, split: str = "heldout") -> str:
    score = scores.get(name, split)
    if score.value is None or score.low is None or score.high is None:
        return "undefined"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def judged(model: Model, task: Task, result: Discovery, circuit: Circuit, ablation: str, asked: int, name: str) -> Row:
    scores = cd.score(model, task, circuit.with_provenance(result.circuit.provenance), n_random=0)
    return Row(ablation, asked, name, circuit.n_edges, scores, result.cost.seconds)


def rows(model: Model, task: Task, ablation: str, sizes: Sequence[int], prices: Sequence[float]) -> list[Row]:
    def find(label: str, **settings: Any) -> Discovery:
        algorithm, _, loss = label.partition(", loss=")
        settings |= {"loss": loss} if loss else {}
        return cd.discover(model, task, algorithm, ablation=ablation, **settings)

    found = []
    steps = tqdm(total=(1 + len(TRAINED_FOR_SIZE)) * len(sizes) + len(prices), desc=ablation)
    rankings = {name: find(name) for name in RANKINGS}
    for size in sizes:
        for name, result in rankings.items():
            circuit = result.greedy(size) if name == "information_flow" else result.top_k(size)
            found.append(judged(model, task, result, circuit, ablation, size, name))
        steps.update()
        for name in TRAINED_FOR_SIZE:
            result = find(name, edges=size)
            found.append(judged(model, task, result, result.circuit, ablation, size, name))
            steps.update()
    for price in prices:
        result = find("subnetwork_probing", regularisation=price)
        size = result.circuit.n_edges
        baseline = rankings["eap_ig"]
        found.append(judged(model, task, baseline, baseline.top_k(size), ablation, size, "eap_ig"))
        found.append(judged(model, task, result, result.circuit, ablation, size, f"subnetwork_probing, {price:g}"))
        steps.update()
    steps.close()
    return sorted(found, key=lambda row: row.asked)


def verdict(found: Sequence[Row]) -> list[str]:
    """One line for each learned mask: at how many sizes it is at least as faithful, and as near to 1, as eap_ig."""

    def value(row: Row, name: str) -> float:
        number = row.scores.get(name).value
        return float("nan") if number is None else number

    baseline = {(row.ablation, row.asked): row for row in found if row.algorithm == "eap_ig"}
    lines = []

    def family(row: Row) -> str:  # the prices of subnetwork_probing make one line
        return "subnetwork_probing" if row.algorithm.startswith("subnetwork") else row.algorithm

    for algorithm in dict.fromkeys(family(row) for row in found if row.algorithm != "eap_ig"):
        mine = [(row, baseline[row.ablation, row.asked]) for row in found if family(row) == algorithm]
        if mine:
            higher = sum(value(row, "faithfulness") >= value(other, "faithfulness") for row, other in mine)
            closer = sum(abs(value(row, "faithfulness") - 1) <= abs(value(other, "faithfulness") - 1) for row, other in mine)
            kl = sum(value(row, "kl") <= value(other, "kl") for row, other in mine)
            lines.append(
                f"- `{algorithm}` against `eap_ig`, of {len(mine)} cases: at least as faithful in {higher}, at least as "
                f"near to a faithfulness of 1 in {closer}, at most its KL in {kl}."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tpp/lightweight")
    parser.add_argument("--task", default="tpp")
    parser.add_argument("--n", type=int, default=100, help="examples searched on")
    parser.add_argument("--n-heldout", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60, 100, 300], help="edges")
    parser.add_argument("--ablations", nargs="+", default=["mean", "resample"])
    parser.add_argument("--prices", type=float, nargs="+", default=[0.07, 0.03, 0.007], help="of subnetwork_probing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = cd.load_model(args.model)
    task = cd.load_task(args.task, model, n=args.n, n_heldout=args.n_heldout)
    table: list[Row] = []
    for ablation in args.ablations:
        table += rows(model, task, ablation, args.sizes, args.prices)
        text = [
            f"# Learned masks against eap_ig: {args.task} on {args.model} ({model.graph.n_edges:,} edges)",
            "",
            f"`python benchmarks/masks_against_eap_ig.py {' '.join(sys.argv[1:])}`",
            "",
            f"{args.n} train examples, {args.n_heldout} held out, metric {task.metric}, default settings; brackets: 95 % "
            "bootstrap intervals, of the examples alone: one seed each. Faithfulness above 1 is an overshoot: the circuit's "
            "metric is above the full model's; KL says how far it is from saying the same. Seconds were taken on a "
            "busy machine and compare roughly. " + machine(),
            "",
            *verdict(table),
            "",
            *markdown(HEADERS, [row.cells() for row in table]),
            "",
        ]
        args.out.write_text("\n".join(text), encoding="utf-8")  # after each ablation, so that nothing is lost
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
