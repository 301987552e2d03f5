"""Positioned circuits against plain ones on shipped models: at equal size by attribution, and at an equal rule by exact search.

    python benchmarks/positions.py      # writes benchmarks/results/POSITIONS.md

By attribution: the best n units (edges at spans) against the best edges at all spans that have no more units which an answer
can see, and against as many edges at all spans as those n units have. By search: `bisect` cuts edges at all spans, and
`positions` units, of the circuit of `bisect` and of the graph; all keep the same share of the gap on the same examples.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.positioned.attribution import ascending, unit_scores
from circuitdisc.positioned.circuit import live_units
from circuitdisc.positioned.positions import OWN, POSITIONED, JudgedSize
from circuitdisc.positioned.search import PositionedRuns, largest, plain_of_size
from circuitdisc.runs import Memo
from circuitdisc.scoring.faithfulness import normalised
from circuitdisc.stats import interval, partition_of
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.spans import Spans

RESULTS = Path(__file__).parent / "results" / "POSITIONS.md"
CASES = (("multitask/base", "ioi", "resample"), ("tpp/lightweight", "tpp", "mean"))
SIZES = (25, 50, 100, 200, 400, 800)
METRIC = "logit_diff"


def between(value: float | None, low: float | None, high: float | None) -> str:
    return "undefined" if value is None or low is None or high is None else f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"


def by_attribution(model: Model, task: Task, ablation: str) -> Iterator[list[str]]:
    """A line a size: faithfulness on held-out examples, and how much nearer the full model the units are."""
    spans, graph, metric = Spans.of((*task.train, *task.heldout)), model.graph, get_metric(METRIC)
    scores, _ = unit_scores(model, task, spans, Ablation(ablation), metric)
    full = live_units(graph, spans, np.repeat(graph.edge_mask[None], len(spans), 0))
    order = ascending(scores)
    order = order[full.flat[order]]
    runs = PositionedRuns(Patching(model, Ablation(ablation), task.train), spans, metric, Memo(None))
    values = partial(runs.values, "heldout", task.heldout, on_step=lambda _: None)
    over = partition_of(task.heldout)
    for n in SIZES:
        units = live_units(graph, spans, largest(scores, order, n))
        n_edges = int(units.any(0).sum())
        masks = {"full": full, "empty": np.zeros_like(full), "units": units}
        masks["plain, units"] = plain_of_size(graph, spans, scores, n, units=True)
        masks["plain, edges"] = plain_of_size(graph, spans, scores, n_edges, units=False)
        found = values(masks)
        line = [str(int(units.sum())), str(n_edges)]

        def figure(names: tuple[str, ...], of: Any, found: Any = found) -> str:
            samples = [found[name] for name in names]
            ends = interval(samples, of, groups=over)
            return between(float(of(np.stack([sample.mean() for sample in samples]))), *ends.ends)

        for name in ("units", "plain, units", "plain, edges"):
            line.append(figure(("full", name, "empty"), normalised))
        for name in ("plain, units", "plain, edges"):
            line.append(figure(("full", name, "units", "empty"), nearer))
        yield line


def nearer(means: np.ndarray) -> np.ndarray:
    """From the means of the full model, two circuits and the empty one."""
    full, first, second, empty = means
    return (np.abs(full - first) - np.abs(full - second)) / np.abs(full - empty)


def by_search(model: Model, task: Task, ablation: str, keep: float) -> Iterator[list[str]]:
    """A line a search."""
    found = cd.discover(model, task, "bisect", ablation=ablation, keep=keep)
    settings: dict[str, Any] = {"ablation": ablation, "metric": METRIC, "n_random": 20, "search": found.cost}
    for start in ("circuit", "graph"):
        rule: dict[str, Any] = {} if start == "circuit" else {"keep": keep}
        result = cd.positions(model, task, found.circuit, start=start, **rule, **settings)
        forwards = result.forwards
        if start == "circuit":
            yield ["`bisect`, edges at all spans", *sizes(result.named(OWN)), "", f"{forwards['own search']:,.0f}"]
        drawn = [[value for value in values if value is not None] for values in result.random.values()]
        random = [f"{min(values):z.2f} to {max(values):z.2f}" for values in drawn]
        spent = (forwards["attribution"] or 0.0) + (forwards["search"] or 0.0)
        spent += (forwards["own search"] or 0.0) * (start == "circuit")
        of = "its circuit" if start == "circuit" else f"the graph, {result.n_tried:,} units"
        yield [f"`positions`, units of {of}", *sizes(result.named(POSITIONED)), "; ".join(random), f"{spent:,.0f}"]


def sizes(row: JudgedSize) -> list[str]:
    searched = between(row.searched, row.searched_low, row.searched_high)
    return [str(row.n_units), str(row.n_edges), searched, between(row.faithfulness, row.low, row.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=40, help="search examples")
    parser.add_argument("--n-heldout", type=int, default=100)
    parser.add_argument("--keep", type=float, default=0.9)
    parser.add_argument("--tasks", nargs="+", default=[task for _, task, _ in CASES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = [
        "# Positioned circuits against plain ones",
        "",
        f"{args.n} search and {args.n_heldout} held-out examples, {METRIC}, seed 0. A unit is an edge at a span of the prompt,",
        "by the task's roles; a plain circuit has its edges at all spans, and its units are those that an answer can see.",
        f"Faithfulness on held-out examples with 95 % intervals, unless said otherwise. {machine()}",
        "",
    ]
    heads = [
        "units",
        "edges",
        "best units",
        "plain, as many units",
        "plain, as many edges",
        "nearer than plain, units",
        "edges",
    ]
    columns = ["search", "units", "edges", "search examples", "held out", "random: other heads; other spans", "forward passes"]
    for name, task_name, ablation in tqdm([case for case in CASES if case[1] in args.tasks]):
        model = cd.load_model(name)
        task = cd.load_task(task_name, model, n=args.n, n_heldout=args.n_heldout)
        spans = Spans.of((*task.train, *task.heldout))
        text += [f"## `{task_name}` on `{name}`, {ablation}", "", f"{len(spans)} spans: {', '.join(spans.names)}.", ""]
        text += ["By attribution (`eap_ig`) alone:", "", *markdown(heads, list(by_attribution(model, task, ablation))), ""]
        text += [f"By exact search that keeps {args.keep:g} of the gap:", ""]
        text += [*markdown(columns, list(by_search(model, task, ablation, args.keep))), ""]
    print("\n".join(text))
    if len(args.tasks) == len(CASES):
        RESULTS.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
