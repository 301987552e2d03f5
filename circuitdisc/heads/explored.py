"""What the explorer shows beside a circuit's graph, measured once, within bounds.

1. Run the full model and the circuit on the held-out examples: their first tokens and the metric, example by example.
2. In one uncut run of them: every node's direct effect on the logits, the tokens that it promotes, head roles, and what every
   head attends to from one named position to another.
3. Keep the attention patterns of the examples that are shown, in bytes, as many as the budget allows.
4. On the first `edge_examples` of them: estimate every edge by its gradient, example by example, and measure the
   `exact_edges` edges with the largest estimates exactly, each cut alone from the circuit.

Shape letters: L layers, H heads, B examples, T positions, S senders, E edges, V vocabulary, N readings.
"""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.attention import Attended, attention_patterns
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.edge_scores import add_scores
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.readout import Readout, direct_effects
from circuitdisc.errors import BadSetting, CircuitdiscError
from circuitdisc.heads.roles import ROLES, role_scores
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.show import token_text

FORMAT = "circuitdisc.explored"
MOST_EXAMPLES = 200
"""Held-out examples that are run."""
SHOWN = 10
"""Examples that the circuit serves best, and as many that it serves worst."""
TOP = 5
"""Tokens that are named of an answer, or of what a node promotes."""
PATTERN_BYTES = 300_000
MOST_PATTERNS = 6
MOST_POSITIONS = 8
LISTED = 500
"""Edges whose estimates are kept example by example."""
_HOLDS, _SHARE = 0.4, 0.8  # as in `head_roles`


@dataclass(frozen=True)
class LikelyToken:
    """A token, and the probability that it gets."""

    token: str
    probability: float


@dataclass(frozen=True)
class ShownExample:
    """An example with what the model and the circuit make of it.

    Args:
        tokens: the clean prompt.
        answers, wrong: right and wrong tokens at the first place that is read.
        full, circuit: the first tokens of each.
        full_value, circuit_value: the metric.
        roles: named positions.
        rank: 0 for the example that the circuit serves best.
    """

    tokens: list[str]
    answers: list[str]
    wrong: list[str]
    full: list[LikelyToken]
    circuit: list[LikelyToken]
    full_value: float
    circuit_value: float
    rank: int
    roles: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeFacts:
    """What a node does.

    Args:
        adds: directly to the logit difference (of tasks without wrong answers: to the answers' logits).
        low, high: its interval.
        promotes: tokens whose logits it raises most, by itself.
        roles: the roles that a head holds.
    """

    adds: float | None = None
    low: float | None = None
    high: float | None = None
    promotes: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EdgeFacts:
    """What cutting an edge changes in the metric: estimates for all edges, exact means for some.

    Args:
        examples: how many; edges carry a value for each of them.
        estimated: by edge: the mean of the gradient's estimates in the full model.
        estimates: by edge, example by example, for the `LISTED` edges with the largest means.
        exact: by edge, example by example: measured in the circuit, with the edge alone cut.
        means: by edge: mean, low and high of the exact changes.
    """

    examples: int = 0
    estimated: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, list[float]] = field(default_factory=dict)
    exact: dict[str, list[float]] = field(default_factory=dict)
    means: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Explored:
    """All of it.

    Args:
        examples: those of which edges carry values come first; then those served best and worst.
        patterns: by head, for each of the first `n_patterns` shown examples its attention: bytes of T x T, base64.
        patterned: the examples that patterns are of, as indices into `examples`.
        positions: named positions that most examples have.
        attends: by head: mean attention from each position (rows) to each.
        cost: in plain forwards: runs of the whole model on one example.
        notes: what could not be had, in sentences.
    """

    format: str
    version: int
    metric: str
    ablation: str
    n: int
    examples: list[ShownExample]
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    patterned: list[int] = field(default_factory=list)
    patterns: dict[str, list[str]] = field(default_factory=dict)
    positions: list[str] = field(default_factory=list)
    attends: dict[str, list[list[float]]] = field(default_factory=dict)
    edges: EdgeFacts = field(default_factory=EdgeFacts)
    has_wrong: bool = True
    cost: float = 0.0
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def explored(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: Ablation,
    metric: Metric,
    memory: str | int = "4GiB",
    exact_edges: int = 32,
    edge_examples: int = 20,
) -> Explored:
    """Measure what the explorer shows.

    Args:
        exact_edges: edges that are measured exactly.
        edge_examples: examples on which edges are measured and estimated.

    Raises:
        CircuitdiscError: the circuit cannot be run on the held-out examples. What else cannot be had is noted.
    """
    examples = task.heldout[:MOST_EXAMPLES]
    sample = examples[:edge_examples]
    words, notes = _Words(model), []
    patching = Patching(model, ablation, task.train, memory=memory)
    values_2B, answers = _answers(patching, examples, circuit, metric, words)
    order = np.argsort(np.abs(values_2B[1] - values_2B[0]), kind="stable")
    ranks = np.argsort(order)
    chosen = list(dict.fromkeys([*range(len(sample)), *order[:SHOWN].tolist(), *order[-SHOWN:].tolist()]))
    shown = [_shown(examples[at], words, answers[at], values_2B[:, at], int(ranks[at])) for at in chosen]
    forwards = (patching.cost.model_runs + patching.cost.circuit_runs) * len(examples)
    parts: dict[str, Any] = {}
    with _noted(notes, "attention and direct effects"):
        parts |= _of_nodes(model, examples, circuit, words, memory)
        forwards += len(examples)
    with _noted(notes, "attention patterns"):
        patterned = _patterned(circuit, examples, chosen, ranks)
        parts |= _patterns(model, [examples[chosen[at]] for at in patterned], circuit, memory) | {"patterned": patterned}
        forwards += len(patterned)
    estimates, estimated = {}, {}
    with _noted(notes, "estimates of edges"):
        estimates, passes = _estimates(model, task, sample, circuit, ablation, metric, memory)
        estimated = {name: round(float(np.mean(row)), 6) for name, row in estimates.items()}
        forwards += passes
    names = sorted(estimated, key=lambda name: -abs(estimated[name])) or circuit.edge_names()
    exact, means = {}, {}
    with _noted(notes, "exact effects of edges"):
        exact, means, passes = _exact(patching, sample, circuit, metric, names[:exact_edges])
        forwards += passes
    by_example = {name: estimates[name] for name in names[:LISTED] if estimates}
    about: dict[str, Any] = {"has_wrong": task.has_wrong, "cost": round(forwards, 1), "notes": notes}
    about["edges"] = EdgeFacts(len(sample), estimated, by_example, exact, means)
    return Explored(FORMAT, 1, metric.name, ablation.label, len(examples), shown, **parts, **about)


@contextmanager
def _noted(notes: list[str], what: str) -> Iterator[None]:
    """Go on without a part that this model, ablation or metric does not have."""
    try:
        yield
    except CircuitdiscError as error:
        why = str(error).partition(";")[0].partition(": ")[0]  # what to use instead is for those who type a command
        notes.append(f"{what}: {why}")


class _Words:
    """Tokens as people read them."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer

    def __call__(self, token: int) -> str:
        return (token_text(int(token), self.tokenizer) or f"[{token}]")[:40]

    def all(self, tokens: Sequence[int] | Tensor) -> list[str]:
        return [self(int(token)) for token in tokens]


# --- answers --------------------------------------------------------------------------------------------------------------


def _answers(
    patching: Patching, examples: Sequence[Example], circuit: Circuit, metric: Metric, words: _Words
) -> tuple[Float[np.ndarray, "2 B"], list[list[list[LikelyToken]]]]:
    """The metric of the full model and the circuit, and the first tokens of both, example by example."""
    values, answers = [], []
    for chunk in patching.chunks(examples):
        first = [chunk.batch.read_example.tolist().index(at) for at in range(chunk.batch.n_examples)]
        both, tops = [], []
        for mask in (circuit.graph.edge_mask, circuit.mask):
            logits = patching.circuit_logits(chunk, mask)
            both.append(of_logits(chunk.batch, chunk.labels, logits, [metric])[metric.name].double().cpu().numpy())
            best = logits[first].double().softmax(-1).topk(min(TOP, logits.shape[-1]))
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            tops.append([[LikelyToken(words(t), round(p, 5)) for t, p in zip(*row, strict=True)] for row in rows])
        values.append(np.stack(both))
        answers += map(list, zip(*tops, strict=True))
    return np.concatenate(values, axis=1), answers


def _shown(
    example: Example, words: _Words, answers: list[list[LikelyToken]], values: Float[np.ndarray, "2"], rank: int
) -> ShownExample:
    right, wrong = words.all(example.answers[0][:TOP]), words.all(example.wrong[0][:TOP] if example.wrong else ())
    tokens, roles = words.all(example.clean), dict(example.roles) | {"end": example.positions[-1]}
    full, kept = answers
    return ShownExample(tokens, right, wrong, full, kept, _finite(values[0]), _finite(values[1]), rank, roles)


def _finite(value: float) -> float:
    return float(np.nan_to_num(value))


# --- nodes ----------------------------------------------------------------------------------------------------------------


def _of_nodes(model: Model, examples: Sequence[Example], circuit: Circuit, words: _Words, memory: str | int) -> dict[str, Any]:
    """Direct effects, promoted tokens, roles, and attention among named positions, from one run of the examples."""
    positions = _positions(examples)
    adds, scores, written, among = [], [], 0.0, []
    for some in attention_patterns(model, examples, memory=memory):
        effects = direct_effects(model, some.batch, some.run)
        adds.append(some.batch.per_example(effects.values).cpu().numpy())
        scores.append(role_scores(some, ROLES).cpu().numpy())
        among.append(_among(some, positions))
        at = some.batch.reads
        readout = Readout(model.components, some.run.residual[at].double())
        written = written + readout.normed(some.run.senders[:, *at]).sum(1)
    values_SB = np.concatenate(adds, axis=1)
    low, high = mean_intervals(values_SB, partition_of(examples))
    share = np.nan_to_num(np.nanmean(np.concatenate(scores, axis=-1) > _HOLDS, axis=-1))  # a role that is defined nowhere is 0
    named = set(circuit.nodes())
    attends, heads = np.nan_to_num(np.concatenate(among, axis=-1).mean(-1)), model.graph.heads
    assert isinstance(written, Tensor)
    nodes = {}
    for sender, node in enumerate(model.graph.senders):
        if node.name not in named:
            continue
        logits = written[sender] @ model.components.weights.W_U.to(written.dtype)
        best = words.all((logits - logits.mean()).topk(min(TOP, len(logits))).indices) if len(logits) > 1 else []
        of = [role for p, role in enumerate(ROLES) if node.kind == "head" and share[p, node.layer, node.head] > _SHARE]
        mean, *ends = (round(float(value), 6) for value in (values_SB[sender].mean(), low[sender], high[sender]))
        nodes[node.name] = NodeFacts(mean, ends[0], ends[1], best, of)
    table = {name: np.round(attends[heads[name]], 3).tolist() for name in heads if name in named and positions}
    return {"nodes": nodes, "positions": positions, "attends": table}


def _positions(examples: Sequence[Example]) -> list[str]:
    """Positions that all examples have, in the order in which they stand."""
    shared = set.intersection(*(set(example.roles) for example in examples))
    first = examples[0]
    named = sorted(shared, key=lambda role: first.roles[role])[:MOST_POSITIONS]
    return [*named, "end"] if named else []


def _among(some: Attended, positions: Sequence[str]) -> Float[np.ndarray, "L H P P2 B"]:
    """Attention from each named position to each, example by example."""
    rows = torch.arange(some.batch.n_examples, device=some.tokens.device)
    at = [some.batch.position(name) for name in positions]
    layers = [
        torch.stack([torch.stack([pattern[:, rows, query, key] for key in at], 1) for query in at], 1)
        if at
        else pattern.new_zeros(pattern.shape[0], 0, 0, len(rows))
        for pattern in some.patterns.values()
    ]
    return torch.stack(layers).double().cpu().numpy()


def _patterned(circuit: Circuit, examples: Sequence[Example], chosen: Sequence[int], ranks: np.ndarray) -> list[int]:
    """Shown examples whose patterns fit the budget: those served best and worst in turn."""
    by_rank = sorted(range(len(chosen)), key=lambda at: ranks[chosen[at]])
    turns = [at for pair in zip(by_rank, reversed(by_rank), strict=True) for at in pair]
    taken, left = [], PATTERN_BYTES
    for at in dict.fromkeys(turns):
        size = max(len(circuit.heads()), 1) * len(examples[chosen[at]]) ** 2
        if size <= left and len(taken) < MOST_PATTERNS:
            taken.append(at)
            left -= size
    if not taken:
        raise BadSetting(f"the prompts are too long: the patterns of one take more than {PATTERN_BYTES:,} bytes")
    return taken


def _patterns(model: Model, examples: Sequence[Example], circuit: Circuit, memory: str | int) -> dict[str, Any]:
    """By head, the pattern of each example in bytes: 255 is all attention."""
    heads = {name: place for name, place in model.graph.heads.items() if name in set(circuit.nodes())}
    patterns: dict[str, list[str]] = {name: [] for name in heads}
    for some in attention_patterns(model, examples, memory=memory):
        for at, example in enumerate(some.batch.examples):
            n, start = len(example), some.batch.offsets[at]
            for name, (layer, head) in heads.items():
                square = some.patterns[layer][head, at, start : start + n, start : start + n]
                data = (square.double() * 255).round().to(torch.uint8).cpu().numpy().tobytes()
                patterns[name].append(base64.b64encode(data).decode("ascii"))
    return {"patterns": patterns}


# --- edges ----------------------------------------------------------------------------------------------------------------


def _estimates(
    model: Model,
    task: Task,
    sample: Sequence[Example],
    circuit: Circuit,
    ablation: Ablation,
    metric: Metric,
    memory: str | int,
) -> tuple[dict[str, list[float]], float]:
    """For every edge of the circuit, example by example, what its cut would change by the gradient; and what it cost."""
    attribution = Attribution(
        model, ablation, task.train, metric, gradient=Gradient(at_full=True), memory=memory, name="explorer"
    )
    learnt = attribution.cost.model_runs * len(task.train)
    attribution.examples, attribution.chunk_size = tuple(sample), 1  # what the ablation learnt stays that of the train split
    edges = torch.from_numpy(circuit.mask.copy()).to(model.device)

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> Float[Tensor, "E"]:
        with torch.enable_grad():
            add_scores(scores, model.graph, chunk.differences, attribution.gradients(chunk, chunk.clean), attribution.groups)
        return scores.detach()[edges]

    _, by_example = attribution.over_chunks(attribution.edges, score)
    values = np.round(by_example.reshape(len(sample), -1).T.cpu().numpy(), 6)
    cost = learnt + (attribution.cost.model_runs + 2 * attribution.cost.backward_runs) * len(sample)
    return dict(zip(circuit.edge_names(), values.tolist(), strict=True)), cost


def _exact(
    patching: Patching, sample: Sequence[Example], circuit: Circuit, metric: Metric, names: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """What cutting each of these edges alone from the circuit changes, by example; means with intervals; and the cost."""
    if patching.ablation.target == "pattern" or not names:
        raise BadSetting("no edge is cut where attention patterns are ablated, or where there are none")
    graph, before = circuit.graph, patching.cost.node_evaluations
    places = sorted((graph.parse_edge(name) for name in names), reverse=True)
    removal = patching.removal(patching.hold(sample), circuit.mask, metric, first=0, accepts=False)
    exact: dict[str, list[float]] = {}
    for receiver, group in groupby(places, key=lambda place: place[0]):
        senders, most = [sender for _, sender in group], removal.most_rows(receiver)
        for first in range(0, len(senders), most):
            some = senders[first : first + most]
            for sender, row in zip(some, removal.each_without(receiver, some) - removal.start_values, strict=True):
                exact[graph.edge_name(receiver, sender)] = np.round(row, 6).tolist()
    removal.close()
    values = np.array(list(exact.values()))
    low, high = mean_intervals(values, partition_of(sample))
    ends = np.round(np.stack([values.mean(1), low, high], axis=1), 6).tolist()
    forwards = (patching.cost.node_evaluations - before) / graph.n_senders * len(sample)
    return exact, dict(zip(exact, ends, strict=True)), forwards + 2 * len(sample)
