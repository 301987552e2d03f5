"""`refine` against what it begins with and against `bisect`, on shipped models, over several draws of the examples.

    python benchmarks/refine.py      # writes benchmarks/results/REFINE.md

At equal faithfulness: every circuit is to keep the same share of the gap in the task's metric between full model and empty
circuit. `eap_ig target=` chooses its size on a quarter of the search examples that it does not score on; the others keep the
share on all of these. At equal size: the best-scored edges, and `refine edges=`, as many as a search at equal faithfulness
kept. All are judged on the same held-out examples, beside random circuits of the same size. A pass is a plain forward pass of
the whole model over the search examples; a backward pass counts as two, and nodes computed as a share of the model's.

Every seed draws search and held-out examples anew. Intervals are Student's over seeds; differences are taken seed by seed.
"""

import argparse
import sys
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from common import machine, markdown
from scipy import stats
from tqdm import tqdm

import circuitdisc as cd

RESULTS = Path(__file__).parent / "results" / "REFINE.md"
CASES = (("tpp/lightweight", "tpp", "mean"), ("multitask/base", "ioi", "resample"))
HEADERS = ["task", "ablation", "algorithm", "edges", "on search examples", "held out", "inside", "random, held out", "passes"]
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "eap_ig, target": ("eap_ig", {"target": True}),
    "bisect": ("bisect", {"keep": True}),
    "refine": ("refine", {"keep": True}),
    "eap_ig, as large as bisect": ("eap_ig", {"edges": "bisect"}),
    "refine, edges of bisect": ("refine", {"edges": "bisect"}),
}
"""Label -> algorithm and settings: `True` stands for the share, a label for that circuit or its size."""
PAIRS = (
    ("refine", "bisect"),
    ("refine, edges of bisect", "bisect"),
    ("refine, edges of bisect", "eap_ig, as large as bisect"),
)


def drawn(case: tuple[str, str, str], seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of every search on one draw of the examples."""
    name, task_name, ablation = case
    model = cd.load_model(name)
    task = cd.load_task(task_name, model, n=args.n, n_heldout=args.n_heldout, seed=seed)
    n_nodes = model.graph.n_layers * (model.graph.n_heads + model.graph.has_mlp)
    circuits, figures = dict[str, cd.Circuit](), dict[str, dict[str, float]]()
    for label, (algorithm, settings) in tqdm(list(SEARCHES.items()), desc=f"{task_name}, seed {seed}"):
        given = {key: args.share if value is True else value for key, value in settings.items()}
        if given.get("edges") in circuits:
            given["edges"] = circuits[given["edges"]].n_edges
        search = cd.discover(model, task, algorithm, ablation=ablation, seed=seed, **given)
        circuits[label], cost = search.circuit, search.cost
        scores = cd.score(model, task, search.circuit, ablation=ablation, n_random=args.controls, seed=seed)
        heldout = scores.get("faithfulness", "heldout")
        does = {split: scores.get("faithfulness", split).value for split in ("train", "heldout")}
        figures[label] = {
            "edges": search.circuit.n_edges,
            **{split: np.nan if value is None else value for split, value in does.items()},
            "random": max((value for value in heldout.controls if value is not None), default=np.nan),
            "passes": cost.model_runs + 2 * cost.backward_runs + cost.node_evaluations / n_nodes,
        }
    return figures


def mean(values: list[float], decimals: int) -> str:
    """The mean over seeds with Student's 95 % interval."""
    center, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error if len(values) > 1 else np.nan
    if not half > 0:
        return f"{center:,.{decimals}f}"
    return f"{center:,.{decimals}f} [{center - half:,.{decimals}f}, {center + half:,.{decimals}f}]"


def lines(case: tuple[str, str, str], draws: list[dict[str, dict[str, float]]], share: float) -> tuple[list[Any], list[Any]]:
    """Rows of the two tables."""
    _, task, ablation = case
    rows, pairs = list[Any](), list[Any]()
    for label in SEARCHES:
        of = {key: [figures[label][key] for figures in draws] for key in ("edges", "train", "heldout", "random", "passes")}
        inside = sum(share <= value <= 2 - share for value in of["heldout"])
        rows.append([
            task, ablation, label, mean(of["edges"], 0), mean(of["train"], 2), mean(of["heldout"], 2),
            f"{inside} of {len(draws)}", f"at most {np.nanmax(of['random']):.2f}", mean(of["passes"], 0),
        ])  # fmt: skip
    for first, second in PAIRS:
        both = [(figures[first], figures[second]) for figures in draws]
        edges = mean([a["edges"] - b["edges"] for a, b in both], 1)
        nearer = [mean([abs(1 - b[split]) - abs(1 - a[split]) for a, b in both], 3) for split in ("train", "heldout")]
        pairs.append([task, f"{first} − {second}", edges, *nearer])
    return rows, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[task for _, task, _ in CASES], default=[task for _, task, _ in CASES])
    parser.add_argument("--n", type=int, default=20, help="examples searched on")
    parser.add_argument("--n-heldout", type=int, default=100)
    parser.add_argument("--controls", type=int, default=3, help="random circuits beside each")
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the examples")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows, pairs, started = list[Any](), list[Any](), process_time()
    for case in [case for case in CASES if case[1] in args.tasks]:
        more = lines(case, [drawn(case, seed, args) for seed in range(args.seeds)], args.share)
        rows, pairs = rows + more[0], pairs + more[1]
        args.out.write_text(page(args, rows, pairs), encoding="utf-8")
    print(f"wrote {args.out}: {process_time() - started:.0f} s of processor time")


def page(args: argparse.Namespace, rows: list[Any], pairs: list[Any]) -> str:
    models = ", ".join(f"{name} ({cd.load_model(name).graph.n_edges:,} edges)" for name, task, _ in CASES if task in args.tasks)
    text = [
        "# refine against eap_ig and bisect, at equal faithfulness and at equal size",
        "",
        " ".join(["`python benchmarks/refine.py", *sys.argv[1:]]) + "`",
        "",
        f"Models {models}; {args.seeds} draws of {args.n} search and {args.n_heldout} held-out examples; means over draws with "
        f"Student's 95 % intervals. The share to be kept is {args.share:g}; `inside`: held-out faithfulness lies from it to "
        f"{2 - args.share:g}. {args.controls} random circuits with as many edges between the same layers. `passes`: plain "
        "forwards over the search examples. `edges of`: refine at the size of another search's circuit. Of the best-scored "
        "edges some lead nowhere and are left out. " + machine(),
        "",
        *markdown(HEADERS, rows),
        "",
        "Differences, draw by draw. `nearer`: by how much the first is nearer to faithfulness 1 than the second; an interval "
        "that has 0 within decides nothing.",
        "",
        *markdown(["task", "pair", "edges", "nearer, search examples", "nearer, held out"], pairs),
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
