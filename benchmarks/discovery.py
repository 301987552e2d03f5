"""Every discovery algorithm against models whose circuit is known by construction.

    python benchmarks/discovery.py                                 # all; writes benchmarks/results/DISCOVERY.csv and .md
    python benchmarks/discovery.py --algorithms acdc eap_ig --cases induction reverse

A cell is one algorithm on one compiled case (`circuitdisc.compiled`) under one ablation, metric logit_diff, residual basis
rotated. A row is appended to the CSV when its cell is done; cells that are there already are not run again, so that a killed
benchmark goes on where it was. The truth is that of the same ablation.

AUROC is of the scores of all edges; of algorithms that decide, of the circuit (kept or not), which is one point of a ROC curve.
Precision and recall are of the circuit for algorithms that decide, and at the true size for scores. Algorithms that need a size
(`edge_pruning`) are told the true one, which helps them; those with a threshold have one far below what any true edge is
worth. Algorithms over heads keep every MLP and embedding, so that their precision in edges is low by construction: read
their nodes.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.compiled import PROGRAMS, CompiledCase, build
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.errors import CircuitdiscError
from circuitdisc.scoring.against_truth import against_truth
from circuitdisc.scoring.truth import Truth

RESULTS = Path(__file__).parent / "results"
ABLATIONS = ("zero", "mean", "resample")
OUTSIDE = ("from_file",)  # has no scores of its own
THRESHOLD = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": THRESHOLD, "two_sided": True},
    "bisect": {"threshold": THRESHOLD},
    "head_ablation": {"threshold": THRESHOLD},
    "path_patching": {"threshold": THRESHOLD, "by": "absolute"},
}
SIZED = ("edge_pruning",)
DECIDES = ("acdc", "bisect", "head_ablation", "path_patching", "hisp")  # their circuit is judged, not what ranked its edges
KEYS = ("case", "ablation", "algorithm", "seed")
FIGURES = ("AUROC edges", "AUROC nodes", "precision", "recall", "taken", "true", "node evaluations", "seconds", "note")


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    for case in args.cases:
        for ablation in args.ablations:
            for algorithm in args.algorithms:
                for seed in args.seeds:
                    yield case, ablation, algorithm, seed


def run(case: CompiledCase, name: str, ablation: str, algorithm: str, seed: int) -> dict[str, Any]:
    """The figures of one cell; a refusal is a row with its sentence."""
    truth = Truth(case.model.graph, {ablation: tuple(case.truth.edges(ablation))}, name)
    settings = dict(SETTINGS.get(algorithm, {}))
    if algorithm in SIZED:
        settings["edges"] = max(1, truth.circuit(ablation).n_edges)
    started = time.perf_counter()
    try:
        found = cd.discover(case.model, case.task, algorithm, ablation=ablation, metric="logit_diff", seed=seed, **settings)
        scores = against_truth(found.circuit if algorithm in DECIDES else found, truth, ablation=ablation)
    except CircuitdiscError as error:
        return {"note": " ".join(str(error).split())}
    edges, nodes = scores.edges, scores.nodes
    return {
        "AUROC edges": edges.auroc,
        "AUROC nodes": nodes.auroc,
        "precision": edges.precision,
        "recall": edges.recall,
        "taken": int(edges.is_taken.sum()),
        "true": int(edges.is_true.sum()),
        "node evaluations": round(found.cost.node_evaluations + found.cost.backward_runs * case.model.graph.n_senders, 1),
        "seconds": round(time.perf_counter() - started, 2),
        "note": "" if scores.scored else "decides",
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("note") is not None]  # a line cut short has no last column


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*KEYS, *FIGURES])
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def summary(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Median figures of each algorithm over cases, by ablation."""

    def middle(chosen: Sequence[Mapping[str, str]], name: str) -> str:
        values = [float(row[name]) for row in chosen if row[name]]
        return f"{median(values):.2f}" if values else "-"

    table = []
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        for ablation in dict.fromkeys(row["ablation"] for row in rows):
            chosen = [row for row in rows if (row["algorithm"], row["ablation"]) == (algorithm, ablation)]
            done = [row for row in chosen if row["AUROC edges"]]
            if done:
                kind = "decides" if done[0]["note"] else "scores"
                figures = [middle(done, name) for name in FIGURES[:4]]
                worst = min(float(row["AUROC edges"]) for row in done)
                table.append([algorithm, kind, ablation, str(len(done)), *figures, f"{worst:.2f}", middle(done, "seconds")])
    headers = ["algorithm", "it", "ablation", "cases", "AUROC edges", "AUROC nodes", "precision", "recall"]
    return markdown([*headers, "worst AUROC edges", "seconds"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=[name for name in ALGORITHMS if name not in OUTSIDE])
    parser.add_argument("--cases", nargs="+", default=list(PROGRAMS))
    parser.add_argument("--ablations", nargs="+", default=list(ABLATIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n", type=int, default=32, help="search examples")
    parser.add_argument("--distractors", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "DISCOVERY.csv")
    args = parser.parse_args()
    rows = read_rows(args.out)
    write_rows(args.out, rows)
    done = {tuple(row[key] for key in KEYS) for row in rows}
    todo = [cell for cell in cells(args) if tuple(map(str, cell)) not in done]
    built: dict[str, CompiledCase] = {}
    with args.out.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*KEYS, *FIGURES], restval="")
        for cell in tqdm(todo, unit="cell"):
            name = cell[0]
            if name not in built:
                built = {name: build(name, n=args.n, rotate=1, distractors=args.distractors)}  # one case at a time is held
            writer.writerow({**dict(zip(KEYS, cell, strict=True)), **run(built[name], *cell)})
            file.flush()
    rows = read_rows(args.out)
    refused = [f"- {row['algorithm']}, {row['case']}, {row['ablation']}: {row['note']}" for row in rows if not row["seconds"]]
    facts = f"{args.n} search examples, {args.distractors} distractor heads a layer, basis rotated. {machine()}"
    text = ["# Discovery algorithms against compiled models", "", *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines()]
    text += ["", facts, "", "Medians over cases:", "", *summary(rows), ""]
    text += ["Refused:", "", *refused, ""] if refused else []
    args.out.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text), args.out, sep="\n")


if __name__ == "__main__":
    main()
