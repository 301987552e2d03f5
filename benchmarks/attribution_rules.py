"""How near attribution comes to exact patching, by way of taking gradients, and how faithful the circuits are.

    python benchmarks/attribution_rules.py                          # shipped models; writes results/ATTRIBUTION_RULES.md
    python benchmarks/attribution_rules.py --model FOLDER           # nodes of a Hugging Face folder on ioi, beside them
    python benchmarks/attribution_rules.py --faithfulness           # circuits of one size; results/ATTRIBUTION_FAITHFULNESS.md

For each sender the effect of cutting it, exactly, against the sum of its edges' scores; for each edge its exact effect against
its score. Pearson's r over senders of a kind (over edges for the column `edges`), resample ablation, logit
difference, mean over examples. r close to 1 says that the ranking by an estimate is that of the truth. Scores of GradDrop have
no sign: r is between their sizes and those of exact effects, and beside them stands `atp` in its sizes, too.

Circuits are grown from `logits` to the same number of edges from the same scores, and judged on held-out examples.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import get_metric
from circuitdisc.models import Model
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results" / "ATTRIBUTION_RULES.md"
FAITHFULNESS = RESULTS.with_name("ATTRIBUTION_FAITHFULNESS.md")
RULES: dict[str, dict[str, Any]] = {"plain": {}, "relp": {"rule": "relp"}, "gim": {"rule": "gim"}}
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    *((f"{name}, {rule}", name, settings) for name in ("eap", "eap_ig") for rule, settings in RULES.items()),
    ("ceap, plain", "ceap", {}),
    ("eap_gp", "eap_gp", {}),
    ("atp", "atp", {}),
    ("atp, sizes", "atp", {}),
    ("atp, grad_drop, sizes", "atp", {"grad_drop": True}),
]
CHOSEN: list[tuple[str, str, dict[str, Any]]] = [
    ("eap_ig", "eap_ig", {}),
    ("eap_ig, sign_consistent=0.8", "eap_ig", {"sign_consistent": 0.8}),
    ("eap_ig, sign_consistent=0.95", "eap_ig", {"sign_consistent": 0.95}),
    ("eap_gp", "eap_gp", {}),
    ("atp", "atp", {}),
    ("atp, grad_drop", "atp", {"grad_drop": True}),
]
SIZES = (60, 150, 300)
SHIPPED = (("tpp/lightweight", "tpp"), ("multitask/base", "induction"), ("multitask/base", "ioi"))


def exact_nodes(model: Model, task: Task) -> dict[str, float]:
    """Change of the metric when a head or an MLP is cut, mean over examples."""
    patching = Patching(model, cd.Ablation("resample"), task.train)
    removal = PartRemoval(patching, task.train, get_metric("logit_diff"), "node")
    names = [node.name for node in model.graph.senders if node.kind in ("head", "mlp")]
    whole = model.graph.edge_mask
    changes = removal.each_removed(whole, names) - removal.values(whole)
    return dict(zip(names, changes.mean(1).tolist(), strict=True))


def r(found: np.ndarray, wanted: np.ndarray) -> str:
    """Pearson's, to two decimals, and of how many; a dash for fewer than five pairs."""
    return f"– ({len(found)})" if len(found) < 5 else f"{np.corrcoef(found, wanted)[0, 1]:.2f} ({len(found):,})"


def rows(model: Model, task: Task, edges: bool) -> list[list[str]]:
    graph, folder = model.graph, Path(model.name)
    shown = folder.name if folder.is_absolute() else model.name  # a table tells nothing of this machine
    nodes = exact_nodes(model, task)
    kinds = {kind: [name for name in nodes if graph.senders[graph.sender_index[name]].kind == kind] for kind in ("head", "mlp")}
    truth = cd.discover(model, task, "exact", ablation="resample").edge_scores if edges else None
    found = []
    for way, name, settings in tqdm(WAYS, desc=model.name):
        shape = np.abs if way.endswith("sizes") else np.asarray
        with warnings.catch_warnings():  # whether scores add up is no question under a rule
            warnings.simplefilter("ignore")
            scores = cd.discover(model, task, name, ablation="resample", **settings).edge_scores
        assert scores is not None
        of_sender = np.nansum(scores, axis=0)
        cells = [
            r(shape([of_sender[graph.sender_index[node]] for node in some]), shape([nodes[node] for node in some]))
            for some in kinds.values()
        ]
        cells.append("not run" if truth is None else r(shape(scores[graph.edge_mask]), shape(truth[graph.edge_mask])))
        found.append([shown, task.name, way, *cells])
    return found


def faithful(model: Model, task: Task) -> list[list[str]]:
    """Held-out faithfulness of circuits of the same size, and of random ones matched with the first."""
    found = []
    for way, name, settings in tqdm(CHOSEN, desc=model.name):
        cells, controls = list[str](), list[str]()
        for size in SIZES:
            result = cd.discover(model, task, name, ablation="resample", edges=size, grow="greedy", **settings)
            scores = cd.score(model, task, result.circuit, ablation="resample", n_random=10 if way == name == "eap_ig" else 0)
            score = scores.get("faithfulness")
            few = "" if result.circuit.n_edges == size else f" ({result.circuit.n_edges} edges)"
            cells.append(f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]{few}")
            drawn = sorted(value for value in score.controls if value is not None)
            controls.append(f"{drawn[0]:.2f} to {drawn[-1]:.2f}" if drawn else "–")
        found.append([model.name, task.name, way, *cells])
        if way == name == "eap_ig":
            found.append([model.name, task.name, "10 random circuits matched with eap_ig's", *controls])
    return found


def loaded(tasks: Sequence[str]) -> list[tuple[Model, str]]:
    return [(cd.load_model(name), task) for name, task in SHIPPED if task in tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, beside the shipped models")
    parser.add_argument("--tasks", nargs="+", default=["subject_verb_agreement", "ioi"], help="of that model")
    parser.add_argument("-n", type=int, default=20, help="prompts")
    parser.add_argument("--faithfulness", action="store_true", help="circuits of equal size, in place of correlations")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.faithfulness:
        tasks = [(model, cd.load_task(task, model, n=40, n_heldout=100)) for model, task in loaded(("tpp", "ioi"))]
        headers = ["model", "task", "attribution", *(f"{size} edges" for size in SIZES)]
        text = ["# Circuits of equal size by attribution", "", "`python benchmarks/attribution_rules.py --faithfulness`"]
        text[-1] += ": held-out faithfulness of logit difference with its 95 % interval, 40 search and 100 held-out prompts,"
        text += ["`resample`, `grow=greedy`.", machine(), ""]
        text += [*markdown(headers, [row for model, task in tasks for row in faithful(model, task)]), ""]
        (args.out or FAITHFULNESS).write_text("\n".join(text), encoding="utf-8")
        return
    cases = [(name, task, True) for name, task in SHIPPED]
    cases += [(args.model, task, False) for task in args.tasks if args.model]
    table: list[list[str]] = []
    for name, task_name, edges in cases:
        model = cd.load_model(name)
        table += rows(model, cd.load_task(task_name, model, n=args.n, n_heldout=1), edges)
        headers = ["model", "task", "attribution, rule", "heads (n)", "MLPs (n)", "edges (n)"]
        text = ["# Attribution against exact patching", "", f"`python benchmarks/attribution_rules.py`, {args.n} prompts."]
        text += [machine(), "", *markdown(headers, table), ""]
        (args.out or RESULTS).write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
