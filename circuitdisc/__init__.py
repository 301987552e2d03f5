"""circuitdisc: automated circuit discovery in transformers.

    import circuitdisc as cd

    model = cd.load_model("tpp/lightweight")
    task = cd.load_task("tpp", model, n=100, n_heldout=1000)
    found = cd.discover(model, task, "acdc", threshold=0.3, ablation="mean")
    scores = cd.score(model, task, found.circuit)
    cd.report(found, scores, "out/")

Names are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitdisc import compiled, heads
    from circuitdisc.ablation import Ablation
    from circuitdisc.circuit import Circuit
    from circuitdisc.compare import compare_runs
    from circuitdisc.discovery import Discovery, discover
    from circuitdisc.errors import CircuitdiscError
    from circuitdisc.exchange import read_edge_scores, write_graph_json
    from circuitdisc.graph import ComputationGraph
    from circuitdisc.patching.interventions import Intervention
    from circuitdisc.patching.path_effects import path_patch
    from circuitdisc.patching.selfcheck import load_model
    from circuitdisc.report import report
    from circuitdisc.scoring import Scores, score
    from circuitdisc.scoring.against_truth import against_truth
    from circuitdisc.scoring.completeness import completeness
    from circuitdisc.scoring.curves import curve
    from circuitdisc.scoring.hypotheses import hypothesis_tests
    from circuitdisc.scoring.intervene import intervene
    from circuitdisc.scoring.minimality import minimality
    from circuitdisc.scoring.overlap import overlap
    from circuitdisc.scoring.stability import stability
    from circuitdisc.scoring.truth import Truth
    from circuitdisc.tasks import load_task

_HOMES = {
    "Ablation": "circuitdisc.ablation",
    "Circuit": "circuitdisc.circuit",
    "CircuitdiscError": "circuitdisc.errors",
    "ComputationGraph": "circuitdisc.graph",
    "Discovery": "circuitdisc.discovery",
    "Intervention": "circuitdisc.patching.interventions",
    "Scores": "circuitdisc.scoring",
    "Truth": "circuitdisc.scoring.truth",
    "against_truth": "circuitdisc.scoring.against_truth",
    "compare_runs": "circuitdisc.compare",
    "completeness": "circuitdisc.scoring.completeness",
    "curve": "circuitdisc.scoring.curves",
    "discover": "circuitdisc.discovery",
    "hypothesis_tests": "circuitdisc.scoring.hypotheses",
    "intervene": "circuitdisc.scoring.intervene",
    "load_model": "circuitdisc.patching.selfcheck",
    "load_task": "circuitdisc.tasks",
    "minimality": "circuitdisc.scoring.minimality",
    "overlap": "circuitdisc.scoring.overlap",
    "path_patch": "circuitdisc.patching.path_effects",
    "read_edge_scores": "circuitdisc.exchange",
    "report": "circuitdisc.report",
    "score": "circuitdisc.scoring",
    "stability": "circuitdisc.scoring.stability",
    "write_graph_json": "circuitdisc.exchange",
}

_ROOMS = ("compiled", "heads")  # packages that are used by their own name, as in cd.heads.head_roles

__all__ = [
    "Ablation",
    "Circuit",
    "CircuitdiscError",
    "ComputationGraph",
    "Discovery",
    "Intervention",
    "Scores",
    "Truth",
    "against_truth",
    "compare_runs",
    "compiled",
    "completeness",
    "curve",
    "discover",
    "heads",
    "hypothesis_tests",
    "intervene",
    "load_model",
    "load_task",
    "minimality",
    "overlap",
    "path_patch",
    "read_edge_scores",
    "report",
    "score",
    "stability",
    "write_graph_json",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"circuitdisc.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'circuitdisc' has no attribute '{name}'")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found  # `report` and `score` are also names of packages: the function wins
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
