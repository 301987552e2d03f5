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

__version__ = "0.2.0"

if TYPE_CHECKING:
    from circuitdisc import heads
    from circuitdisc.ablation import Ablation
    from circuitdisc.certainty.backups import backups
    from circuitdisc.certainty.mixtures import mixtures
    from circuitdisc.certainty.rivals import rivals
    from circuitdisc.certainty.specificity import specificity
    from circuitdisc.checkpoints.baselines import baselines
    from circuitdisc.checkpoints.cmap.cmap import cmap
    from circuitdisc.checkpoints.drift import drift
    from circuitdisc.checkpoints.finetune.finetune import finetune
    from circuitdisc.checkpoints.transfer.transfer import transfer
    from circuitdisc.circuit import Circuit
    from circuitdisc.discovery import Discovery, discover
    from circuitdisc.engine.interventions import Intervention
    from circuitdisc.engine.path_effects import path_patch
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.engine.user_hooks import run_with_cache, run_with_hooks
    from circuitdisc.errors import CircuitdiscError
    from circuitdisc.exchange import read_edge_scores, write_graph_json
    from circuitdisc.exchange.graphs import write_graph
    from circuitdisc.figures import plot
    from circuitdisc.graph import ComputationGraph
    from circuitdisc.heads.dcm.dcm import dcm
    from circuitdisc.heads.localised.head_edits import HeadEdit
    from circuitdisc.heads.localised.localised import localised
    from circuitdisc.jobs.compare_runs import compare_runs
    from circuitdisc.jobs.task_checks import check_tasks
    from circuitdisc.known import compiled, siit
    from circuitdisc.known.causal import CausalModel, Variable
    from circuitdisc.metrics import Metric
    from circuitdisc.pages import report
    from circuitdisc.pages.inline import explore
    from circuitdisc.planning import plan
    from circuitdisc.positioned.circuit import PositionedCircuit
    from circuitdisc.positioned.positions import positions
    from circuitdisc.scoring import Scores, score
    from circuitdisc.scoring.against_truth import against_truth
    from circuitdisc.scoring.certify import certify
    from circuitdisc.scoring.completeness import completeness
    from circuitdisc.scoring.curves import curve
    from circuitdisc.scoring.hypotheses import hypothesis_tests
    from circuitdisc.scoring.interchange import interchange_accuracy
    from circuitdisc.scoring.intervene import intervene
    from circuitdisc.scoring.minimality import minimality
    from circuitdisc.scoring.overlap import overlap
    from circuitdisc.scoring.stability import stability
    from circuitdisc.scoring.truth import Truth
    from circuitdisc.tasks import load_task
    from circuitdisc.tasks.desiderata import Desideratum, load_desiderata

_HOMES = {
    "Ablation": "circuitdisc.ablation",
    "CausalModel": "circuitdisc.known.causal",
    "Circuit": "circuitdisc.circuit",
    "CircuitdiscError": "circuitdisc.errors",
    "ComputationGraph": "circuitdisc.graph",
    "Desideratum": "circuitdisc.tasks.desiderata",
    "Discovery": "circuitdisc.discovery",
    "HeadEdit": "circuitdisc.heads.localised.head_edits",
    "Intervention": "circuitdisc.engine.interventions",
    "Metric": "circuitdisc.metrics",
    "PositionedCircuit": "circuitdisc.positioned.circuit",
    "Scores": "circuitdisc.scoring",
    "Truth": "circuitdisc.scoring.truth",
    "Variable": "circuitdisc.known.causal",
    "against_truth": "circuitdisc.scoring.against_truth",
    "backups": "circuitdisc.certainty.backups",
    "baselines": "circuitdisc.checkpoints.baselines",
    "certify": "circuitdisc.scoring.certify",
    "check_tasks": "circuitdisc.jobs.task_checks",
    "cmap": "circuitdisc.checkpoints.cmap.cmap",
    "compare_runs": "circuitdisc.jobs.compare_runs",
    "completeness": "circuitdisc.scoring.completeness",
    "curve": "circuitdisc.scoring.curves",
    "dcm": "circuitdisc.heads.dcm.dcm",
    "discover": "circuitdisc.discovery",
    "drift": "circuitdisc.checkpoints.drift",
    "explore": "circuitdisc.pages.inline",
    "finetune": "circuitdisc.checkpoints.finetune.finetune",
    "hypothesis_tests": "circuitdisc.scoring.hypotheses",
    "interchange_accuracy": "circuitdisc.scoring.interchange",
    "intervene": "circuitdisc.scoring.intervene",
    "load_desiderata": "circuitdisc.tasks.desiderata",
    "load_model": "circuitdisc.engine.selfcheck",
    "load_task": "circuitdisc.tasks",
    "localised": "circuitdisc.heads.localised.localised",
    "minimality": "circuitdisc.scoring.minimality",
    "mixtures": "circuitdisc.certainty.mixtures",
    "overlap": "circuitdisc.scoring.overlap",
    "path_patch": "circuitdisc.engine.path_effects",
    "plot": "circuitdisc.figures",
    "read_edge_scores": "circuitdisc.exchange",
    "plan": "circuitdisc.planning",
    "positions": "circuitdisc.positioned.positions",
    "report": "circuitdisc.pages",
    "run_with_cache": "circuitdisc.engine.user_hooks",
    "run_with_hooks": "circuitdisc.engine.user_hooks",
    "rivals": "circuitdisc.certainty.rivals",
    "score": "circuitdisc.scoring",
    "specificity": "circuitdisc.certainty.specificity",
    "stability": "circuitdisc.scoring.stability",
    "transfer": "circuitdisc.checkpoints.transfer.transfer",
    "write_graph": "circuitdisc.exchange.graphs",
    "write_graph_json": "circuitdisc.exchange",
}

# packages that are used by their own name, as in cd.heads.head_roles
_ROOMS = {"compiled": "circuitdisc.known.compiled", "heads": "circuitdisc.heads", "siit": "circuitdisc.known.siit"}

__all__ = [
    "Ablation",
    "CausalModel",
    "Circuit",
    "CircuitdiscError",
    "ComputationGraph",
    "Desideratum",
    "Discovery",
    "HeadEdit",
    "Intervention",
    "Metric",
    "PositionedCircuit",
    "Scores",
    "Truth",
    "Variable",
    "against_truth",
    "backups",
    "baselines",
    "certify",
    "check_tasks",
    "cmap",
    "compare_runs",
    "compiled",
    "completeness",
    "curve",
    "dcm",
    "discover",
    "drift",
    "explore",
    "finetune",
    "heads",
    "hypothesis_tests",
    "interchange_accuracy",
    "intervene",
    "load_desiderata",
    "load_model",
    "load_task",
    "localised",
    "minimality",
    "mixtures",
    "overlap",
    "path_patch",
    "plan",
    "plot",
    "positions",
    "read_edge_scores",
    "report",
    "rivals",
    "run_with_cache",
    "run_with_hooks",
    "score",
    "siit",
    "specificity",
    "stability",
    "transfer",
    "write_graph",
    "write_graph_json",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'circuitdisc' has no attribute '{name}'")
    member = getattr(import_module(_HOMES[name]), name)
    globals()[name] = member
    return member


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
