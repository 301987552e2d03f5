"""Four ways to a circuit of one task: do they find the same heads, and how good is what they find?

    python benchmarks/algorithms_on_one_task.py      # writes benchmarks/results/ALGORITHMS_ON_IOI.md

`path_patching` in rounds (plan `auto`), `acdc`, `eap_ig` and `edge_pruning` on the same search examples under the same
ablation; the last two with as many edges as `acdc` kept. Judged on the same held-out examples, beside random circuits of the
same size and kind. Path patching gives a head circuit, which keeps every MLP and embedding; the others cut edges, so that
faithfulness compares only among those three. As head circuits (the same heads, everything else kept) all four compare.
Faithfulness is of the logit difference between right and wrong answers, accuracy over the whole vocabulary: `edge_pruning`
follows the KL to the full model unless `loss=metric`, and the others the logit difference.
"""

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

from common import machine, markdown

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.models import Model
from circuitdisc.scoring.overlap import overlap
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results"
SIZES = [
    "algorithm",
    "heads",
    "edges",
    "faithfulness, held out",
    "accuracy, held out",
    "faithfulness of random circuits",
    "seconds",
]
AS_HEADS = ["algorithm", "heads kept", "faithfulness as a head circuit, held out", "random heads, same layers"]
PAIRS = ["pair", "heads shared", "Jaccard of heads", "shared by chance (same layers)", "p"]


def score_cells(model: Model, task: Task, circuit: Circuit, ablation: str, controls: int) -> tuple[str, str, str]:
    """Faithfulness and accuracy with intervals, and the range of faithfulness of random circuits."""
    scores = cd.score(model, task, circuit, ablation=ablation, n_random=controls)
    cells = []
    for name in ("faithfulness", "accuracy"):
        score = scores.get(name)
        defined = score.value is not None and score.low is not None and score.high is not None
        cells.append(f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if defined else "undefined")
    random = sorted(value for value in scores.get("faithfulness").controls if value is not None)
    shown = (
        f"median {random[len(random) // 2]:.3f} ({random[0]:.3f} to {random[-1]:.3f}) of {len(random)}" if random else "none"
    )
    return cells[0], cells[1], shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multitask/base")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--ablation", default="resample")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--n-heldout", type=int, default=300)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--acdc-threshold", type=float, default=0.02)
    parser.add_argument("--path-threshold", type=float, default=0.05)
    args = parser.parse_args()
    model = cd.load_model(args.model)
    task = cd.load_task(args.task, model, n=args.n, n_heldout=args.n_heldout)
    found: dict[str, Any] = {}

    def search(label: str, **settings: Any) -> None:
        print(label, flush=True)
        found[label] = cd.discover(model, task, label.split(",")[0], ablation=args.ablation, progress=True, **settings)

    search("path_patching", threshold=args.path_threshold)
    search("acdc", threshold=args.acdc_threshold, two_sided=False)  # the published rule
    size = found["acdc"].circuit.n_edges
    search("eap_ig", edges=size)
    search("edge_pruning", edges=size)
    search("edge_pruning, loss=metric", edges=size, loss="metric")
    sizes, as_heads = [], []
    for name, one in found.items():
        heads = one.circuit.heads()
        cells = score_cells(model, task, one.circuit, args.ablation, args.controls)
        sizes.append([name, str(len(heads)), f"{one.circuit.n_edges:,}", *cells, f"{one.cost.seconds:.0f}"])
        head_circuit = Circuit.from_heads(model.graph, heads)
        faithfulness, _, random = score_cells(model, task, head_circuit, args.ablation, args.controls)
        as_heads.append([name, str(len(heads)), faithfulness, random])
    pairs = []
    for left, right in combinations(found, 2):
        heads = overlap(found[left].circuit, found[right].circuit)["heads"]
        by_chance = [f"{heads.matched.expected:.1f}", f"{heads.matched.p_value:.2g}"] if heads.matched else ["-", "-"]
        pairs.append([f"{left} and {right}", str(heads.n_shared), f"{heads.jaccard:.2f}", *by_chance])
    title = f"# Four algorithms on `{args.task}` in `{args.model}`"
    facts = f"Ablation {args.ablation}, {args.n} search examples, {args.n_heldout} held out; acdc, one-sided, threshold "
    facts += f"{args.acdc_threshold:g} (logit difference), path patching threshold {args.path_threshold:g} (relative). "
    facts += f"{model.graph.describe()}, "
    facts += f"{model.graph.n_edges:,} edges. {machine()}"
    groups = [f"- `{name}`: {', '.join(heads)}" for name, heads in found["path_patching"].circuit.groups.items()]
    text = [title, "", *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(), "", facts, ""]
    text += [*markdown(SIZES, sizes), "", *markdown(AS_HEADS, as_heads), "", *markdown(PAIRS, pairs), ""]
    text += ["Groups that path patching found:", "", *groups, ""]
    path = RESULTS / f"ALGORITHMS_ON_{args.task.upper()}.md"
    path.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text), path, sep="\n")


if __name__ == "__main__":
    main()
