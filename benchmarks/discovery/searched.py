"""One search of a cell, and what it cost in passes through the model."""

from collections.abc import Mapping
from typing import Any

import circuitdisc as cd
from benchmarks.discovery.cells import Cell, settings_of
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task


def settings_for(cell: Cell, config: Mapping[str, Any], true_size: int | None) -> dict[str, Any]:
    """An algorithm's settings; one that takes a number of edges is told the true one, if it is known."""
    known, settings = get_algorithm(cell.registered).settings, settings_of(cell, config)
    if true_size is not None and "edges" in known:
        settings = {"edges": max(1, true_size), **settings}
    if "grow" in config[cell.part] and "grow" in known:
        settings = {"grow": config[cell.part]["grow"], **settings}
    return settings


def search(cell: Cell, config: Mapping[str, Any], model: Model, task: Task, true_size: int | None = None) -> Discovery:
    """Run the cell's algorithm."""
    return cd.discover(
        model,
        task,
        cell.registered,
        ablation=cell.ablation,
        metric=cell.metric,
        seed=cell.seed,
        memory=config["memory"],
        keep_units=config["halves"],
        **settings_for(cell, config, true_size),
    )


def cost_columns(found: Discovery, scored: bool) -> dict[str, Any]:
    """What a search cost, in the same units for all.

    A forward pass is one evaluation of every head and MLP on all search examples: runs of the whole model count one, and nodes
    that are computed again count as their share of it.
    """
    graph, cost = found.circuit.graph, found.cost
    n_nodes = sum(node.kind in ("head", "mlp") for node in graph.senders)
    whole = cost.model_runs * n_nodes
    return {
        "kind": "scores" if scored else f"decides {found.circuit.granularity}s",
        "graph_edges": graph.n_edges,
        "circuit_edges": found.circuit.n_edges,
        "forward_passes": cost.model_runs + cost.node_evaluations / n_nodes,
        "backward_passes": cost.backward_runs,
        "node_evaluations": cost.node_evaluations + whole,
        "seconds": cost.seconds,
    }
