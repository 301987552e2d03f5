"""How many clusters `circuitdisc mixtures` finds in one task alone, and in tasks that mix two; and what their circuits do.

    python benchmarks/mixtures.py [--seeds 20]      # writes benchmarks/results/MIXTURES.md

1. Clusters: tasks of `multitask/base`, alone and two in one file, other prompts for each seed.
2. Circuits: all of the command on some of them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown
from scipy import stats

import circuitdisc as cd
from circuitdisc.models import Model

RESULTS = Path(__file__).parent / "results" / "MIXTURES.md"
ABBA: dict[str, Any] = {"order": "abba"}
ALONE = (("entity_tracking",), ("colored_objects",), ("induction",), ("ioi abba",))
MIXED = (("induction", "entity_tracking"), ("induction", "colored_objects"), ("ioi abba", "entity_tracking"))
WHOLE = (("induction", "entity_tracking"), ("ioi",))


def rows_of(model: Model, names: tuple[str, ...], n: int, n_heldout: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a task file with as many prompts of each task; `group` is the task's own group."""
    rows = []
    for name in names:
        settings = ABBA if name.endswith("abba") else {}
        share = {"n": n // len(names), "n_heldout": n_heldout // len(names), "seed": seed}
        task = cd.load_task(name.split()[0], model, **share, **settings)
        for split in ("train", "heldout"):
            for example in task.split(split):
                (answers,), (wrong,), corrupted = example.answers, example.wrong, list(example.corrupted or ())
                row = {"clean": list(example.clean), "corrupted": corrupted, "answers": list(answers), "wrong": list(wrong)}
                rows.append({**row, "group": f"{name} {example.group}".strip(), "split": split})
    return rows


def judged(
    model: Model, names: tuple[str, ...], seed: int, by: str = "eap", n: int = 30, n_heldout: int = 10, **settings: Any
) -> Any:
    """The task, and what `mixtures` says of it with circuits by an algorithm."""
    task = cd.load_task(rows_of(model, names, n, n_heldout, seed), model)
    search = cd.discover(model, task, by, ablation="resample", edges=100)
    own: dict[str, Any] = {"n_splits": 1, "settings": {"edges": 100}, "search": search.cost, "seed": seed, **settings}
    return task, cd.mixtures(model, task, search.circuit, by, **own)


def purity(result: Any) -> float:
    """Share of the search examples whose cluster is mostly of their own task."""
    tasks = [{name.split()[0] for name in groups} for groups in result.groups]
    every = sorted(set().union(*tasks))
    counts = [[sum(n for name, n in groups.items() if name.split()[0] == task) for task in every] for groups in result.groups]
    return sum(map(max, counts)) / result.n_search


def share(n: int, of: int) -> str:
    """`20 of 20 [.832, 1]`, the exact interval of Clopper and Pearson."""
    ends = stats.binomtest(n, of).proportion_ci(0.95, "exact")
    return f"{n} of {of} [{ends.low:.3f}, {ends.high:.3f}]"


def counted(model: Model, cases: tuple[tuple[str, ...], ...], n_seeds: int, **settings: Any) -> list[list[str]]:
    """A line for each case: how often there are one, two and more clusters, and how pure they are."""
    lines = []
    for names in cases:
        results = [judged(model, names, seed, **settings)[1] for seed in range(n_seeds)]
        numbers = [result.k for result in results]
        mean = np.mean([purity(result) for result in results if result.k > 1]) if max(numbers) > 1 else None
        shares = [share(sum(k == wanted for k in numbers), n_seeds) for wanted in (1, 2)]
        more = share(sum(k > 2 for k in numbers), n_seeds)
        lines.append([" + ".join(names), *shares, more, "" if mean is None or len(names) == 1 else f"{mean:.3f}"])
    return lines


def circuits(model: Model, names: tuple[str, ...]) -> list[str]:
    """All of the command on one case."""
    _, result = judged(model, names, 0, "eap_ig", n=80, n_heldout=120, n_splits=19)
    rows = [
        [f"of cluster {c}" if c else "of all", str(result.edges[c])]
        + [f"{one.faithfulness:z.2f} [{one.low:z.2f}, {one.high:z.2f}]" for one in result.cells if one.circuit == c]
        for c in range(result.k + 1)
    ]
    spent = sum(value for name, value in result.forwards.items() if name != "own search" and value)
    return [
        f"### {' + '.join(names)}",
        "",
        f"Clusters of {' and '.join(map(str, result.sizes))} search examples. Own circuits nearer the model by",
        f"{result.advantage:.2f} of faithfulness; {len(result.random)} random splits {min(result.random):z.2f} to",
        f"{max(result.random):z.2f}, p = {result.p:.2f}. Mean Jaccard index of the circuits {result.shared:.2f}, of",
        f"random splits {result.random_shared:.2f}.",
        f"Cost: {spent:,.0f} forward passes of a prompt, {spent / (result.forwards['own search'] or 1):.0f} times the search.",
        "",
        *markdown(["circuit", "edges", *(f"on cluster {k + 1}" for k in range(result.k))], rows),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = cd.load_model("multitask/base")
    headers = ["task", "1 cluster", "2 clusters", "more", "mean purity"]
    text = [
        "# Mixtures that were planted, and tasks alone",
        "",
        f"`multitask/base`, {args.seeds} seeds each, 30 search and 10 held-out examples, scores of edges, resample ablation,",
        "logit_diff, defaults of `circuitdisc mixtures`.",
        f"{machine()}",
        "",
        "## One task alone",
        "",
        *markdown(headers, counted(model, ALONE, args.seeds)),
        "",
        "## Two tasks in one file",
        "",
        *markdown(headers, counted(model, MIXED, args.seeds)),
        "",
        "Shares with exact 95 % intervals. Purity: search examples whose cluster is mostly of their own task.",
        "",
        "## Circuits of the clusters",
        "",
        "`eap_ig`, 100 edges, 80 search and 120 held-out examples, 19 random splits.",
        "",
        *(line for names in WHOLE for line in circuits(model, names)),
    ]
    RESULTS.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
