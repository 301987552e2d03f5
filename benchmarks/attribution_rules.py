"""How near attribution comes to exact patching, by rule of the backward pass.

    python benchmarks/attribution_rules.py                          # shipped models; writes results/ATTRIBUTION_RULES.md
    python benchmarks/attribution_rules.py --model FOLDER           # nodes of a Hugging Face folder on ioi, beside them

For each sender the effect of cutting it, exactly, against the sum of its edges' scores; for each edge its exact effect against
its score. Pearson's r over senders of a kind (over edges for the column `edges`), resample ablation, logit
difference, mean over examples. r close to 1 says that the ranking by an estimate is that of the truth.
"""

import argparse
import warnings
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
WAYS = [(name, rule) for name in ("eap", "eap_ig") for rule in ("plain", "relp", "gim")] + [("ceap", "plain")]
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
    for name, rule in tqdm(WAYS, desc=model.name):
        settings: dict[str, Any] = {} if rule == "plain" else {"rule": rule}
        with warnings.catch_warnings():  # whether scores add up is no question under a rule
            warnings.simplefilter("ignore")
            scores = cd.discover(model, task, name, ablation="resample", **settings).edge_scores
        assert scores is not None
        of_sender = np.nansum(scores, axis=0)
        cells = [
            r(np.array([of_sender[graph.sender_index[node]] for node in some]), np.array([nodes[node] for node in some]))
            for some in kinds.values()
        ]
        cells.append("not run" if truth is None else r(scores[graph.edge_mask], truth[graph.edge_mask]))
        found.append([shown, task.name, f"{name}, {rule}", *cells])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, beside the shipped models")
    parser.add_argument("--tasks", nargs="+", default=["subject_verb_agreement", "ioi"], help="of that model")
    parser.add_argument("-n", type=int, default=20, help="prompts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cases = [(name, task, True) for name, task in SHIPPED]
    cases += [(args.model, task, False) for task in args.tasks if args.model]
    table: list[list[str]] = []
    for name, task_name, edges in cases:
        model = cd.load_model(name)
        table += rows(model, cd.load_task(task_name, model, n=args.n, n_heldout=1), edges)
        headers = ["model", "task", "attribution, rule", "heads (n)", "MLPs (n)", "edges (n)"]
        text = ["# Attribution against exact patching", "", f"`python benchmarks/attribution_rules.py`, {args.n} prompts."]
        text += [machine(), "", *markdown(headers, table), ""]
        args.out.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
