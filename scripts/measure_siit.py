"""Measure a shipped case: does it do its task through the true edges alone?

On prompts that were never trained on: accuracy; interchange accuracy of every variable; what is left of the output when all
edges but the true ones are ablated; and what each single edge does when it alone is ablated. A truth is said to hold for an
ablation if the true edges alone give the model's output on at least 99 % of the answers, and every true edge moves the logit
difference further than any other edge does.

Shape letters: N readings, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.known.siit.case import program_of
from circuitdisc.known.siit.program import SiitProgram, draw_prompts
from circuitdisc.known.siit.truth import truth_of
from circuitdisc.models.load import read_model
from circuitdisc.models.model import Model
from circuitdisc.scoring.interchange import interchange_accuracy
from circuitdisc.tasks.base import Example

N, SEED = 400, 1234
LEAST_AGREEMENT = 0.99
ABLATIONS = ("resample", "mean", "zero")


def held_out_examples(program: SiitProgram, n: int = N, seed: int = SEED) -> list[Example]:
    """Pairs of prompts that were never trained on."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        found += program.examples(draw_prompts(program, rng, n, trained=False))
    return found[:n]


def measured(name: str) -> dict[str, Any]:
    """All figures of one case."""
    program, model = program_of(name), read_model(f"siit/{name}")
    prompts = draw_prompts(program, np.random.default_rng(SEED), 5 * N, trained=False)
    examples = held_out_examples(program)
    scores = interchange_accuracy(model, program.causal, program.nodes, examples, n_sources=5)
    of_ablation = {kind: ablated(model, program, examples, kind) for kind in ABLATIONS}
    return {
        "summary": program.summary,
        "d_model": program.config.d_model,
        "one_hot_width": program.one_hot_width,
        "norm": program.config.normalization_type,
        "prompts": len(prompts),
        "accuracy": accuracy(model, program, prompts),
        "interchange": {row.pop("variable"): row for row in scores.table()},
        "edges": {"all": model.graph.n_edges, "true": len(truth_of(program, model.graph, ("resample",)).edges("resample"))},
        "ablated": of_ablation,
        "ablations": [kind for kind, found in of_ablation.items() if found["holds"]],
    }


@torch.no_grad()
def accuracy(model: Model, program: SiitProgram, prompts: Tensor) -> float:
    """Share of right answers at all positions that are read."""
    answers = program.causal.run(prompts)["logits"][:, list(program.positions)]
    everything = torch.ones_like(prompts)
    logits = model.own_logits(prompts, everything, everything.cumsum(1) - 1)[:, list(program.positions)]
    return float((logits.argmax(-1) == answers).float().mean())


@dataclass(frozen=True)
class Moved:
    """What a cut does: mean absolute change of the logit difference, and share of answers whose most likely token changes."""

    logit_diff: float
    argmax: float


def ablated(model: Model, program: SiitProgram, examples: list[Example], kind: str) -> dict[str, Any]:
    """What is left when edges are cut under one ablation: all but the true ones, and each one alone."""
    graph = model.graph
    true = truth_of(program, graph, (kind,)).edges(kind)
    patching = Patching(model, Ablation(kind), examples)
    (chunk,) = patching.chunks(examples)
    full = patching.circuit_logits(chunk, graph.edge_mask)
    right, wrong = chunk.labels.columns.unbind(1)

    def moved(mask: Bool[np.ndarray, "R S"]) -> tuple[Moved, Float[Tensor, "N V"]]:
        logits = patching.circuit_logits(chunk, mask)
        change = (logits - full).gather(1, torch.stack([right, wrong], 1))
        argmax = (logits.argmax(-1) != full.argmax(-1)).double().mean()
        return Moved(float((change[:, 0] - change[:, 1]).abs().mean()), float(argmax)), logits

    circuit, logits = moved(Circuit.from_edges(graph, true).mask)
    single: dict[str, Moved] = {}
    for receiver, sender in np.argwhere(graph.edge_mask):
        mask = graph.edge_mask.copy()
        mask[receiver, sender] = False
        single[graph.edge_name(receiver, sender)] = moved(mask)[0]
    others = {name: one for name, one in single.items() if name not in true}
    largest = max(others, key=lambda name: others[name].logit_diff)
    smallest = min(true, key=lambda name: single[name].logit_diff)
    holds = circuit.argmax <= 1 - LEAST_AGREEMENT and single[smallest].logit_diff > others[largest].logit_diff
    return {
        "holds": holds,
        "agreement": 1 - circuit.argmax,
        "accuracy": float((logits.argmax(-1) == right).double().mean()),
        "logit_diff": float((full.gather(1, right[:, None]) - full.gather(1, wrong[:, None])).mean()),
        "logit_diff_moved": circuit.logit_diff,
        "largest_other": {"edge": largest, **vars(others[largest])},
        "largest_other_argmax": max(one.argmax for one in others.values()),
        "smallest_true": {"edge": smallest, **vars(single[smallest])},
        "smallest_true_argmax": min(single[name].argmax for name in true),
    }
