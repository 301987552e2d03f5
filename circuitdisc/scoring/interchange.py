"""Interchange accuracy: does a node of the model play the part of a variable of a causal model?

    intervention   a base prompt, a source prompt, a variable. The model runs on the base prompt while the variable's node (or
                   nodes) writes what it writes on the source prompt; the causal model runs on the base prompt while the
                   variable has its value on the source prompt
    accuracy       share of the interventions after which the model's most likely token is the causal model's answer
    effective      the same, of those interventions alone that change the causal model's answer. Where few do, a node that does
                   nothing has a high accuracy, too
    controls       the same interventions at other nodes: as many heads of the same layers; for an MLP, another layer's

Source: Geiger et al. 2021, "Causal Abstractions of Neural Networks" (interchange interventions, interchange accuracy).

Shape letters: B interventions, T positions, N readings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.checks import N_RANDOM, Whole, bounded
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.interchange import check_nodes, interchange_chunks, interchanged_logits
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.known.causal import UNDEFINED, CausalModel, Setting
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, takes
from circuitdisc.progress import progress_bar
from circuitdisc.scoring.interchange_draws import random_nodes, source_pairs
from circuitdisc.scoring.interchange_result import Control, InterchangeScores, VariableScore
from circuitdisc.stats import Interval, partition, share_interval
from circuitdisc.tasks.base import Example
from circuitdisc.tasks.measured import need_choice

Alignment = Mapping[str, str | Sequence[str]]


@bounded(n_sources=Whole(1, 100_000), n_random=N_RANDOM)
@takes(Drawing)
def interchange_accuracy(
    model: Model,
    causal: CausalModel,
    alignment: Alignment,
    examples: Sequence[Example],
    *,
    variables: Sequence[str] | None = None,
    positions: Sequence[int] | None = None,
    n_sources: int = 4,
    n_random: int = 3,
    **options: Unpack[Drawing],
) -> InterchangeScores:
    """Interchange accuracy of a model against a causal model.

    Args:
        causal: its answer is a column of the model's logits.
        alignment: variable -> the node, or the nodes, that it is said to live in.
        examples: their clean prompts are base prompts and each other's source prompts; answers are read at their positions.
        variables: None: all of the alignment.
        positions: where nodes and variables are set; None: at every position.
        n_sources: source prompts for each base prompt, different ones of the same length.
        n_random: sets of other nodes to try; fewer where the model has no more.
        seed: of source prompts and controls.

    Raises:
        UnknownName: a variable or a node is not known.
        BadSetting: the model runs by hooks, nothing is aligned, or a number is out of its bounds.
        BadTask: prompts have too few partners of their length, or no intervention has a defined answer.

    Source: Geiger et al. 2021.
    """
    need_choice(model, "interchange accuracy")
    homes = _checked(model, causal, alignment, variables)
    where = _checked_positions(positions, examples)
    given: Any = options
    rng = np.random.default_rng(given["seed"])
    pairs, bases = source_pairs(examples, n_sources, rng)
    drawn = {name: random_nodes(model.graph, nodes, n_random, rng) for name, nodes in homes.items()}
    found = []
    n_runs = sum(1 + len(sets) for sets in drawn.values()) * len(pairs)
    with progress_bar(n_runs, "interchange", "prompt", given["progress"]) as bar:
        for name, nodes in homes.items():
            hits = [Hits.empty() for _ in range(1 + len(drawn[name]))]
            for chunk in _chunks(model, pairs, given["memory"]):
                base, source = chunk.batch.clean.cpu(), chunk.batch.corrupted
                assert source is not None, "every pair has a source prompt"
                right = causal.run(base)["logits"]
                rows = None if where is None else _rows(where, base.shape)
                wanted = causal.run(base, {name: Setting(causal.run(source.cpu())[name], rows)})["logits"]
                for index, one in enumerate((nodes, *drawn[name])):
                    logits = interchanged_logits(model, chunk, one, None if rows is None else rows.to(model.device))
                    hits[index] = hits[index].add(chunk.batch.reads, logits, wanted, right)
                    bar.update(chunk.batch.n_examples)
            found.append(_score(name, nodes, drawn[name], hits, bases, examples, given["confidence"]))
    return InterchangeScores(model.name, causal.name, tuple(found))


def _checked(
    model: Model, causal: CausalModel, alignment: Alignment, variables: Sequence[str] | None
) -> dict[str, tuple[str, ...]]:
    """Variable -> nodes, of those asked for."""
    homes = {name: (nodes,) if isinstance(nodes, str) else tuple(nodes) for name, nodes in alignment.items()}
    for name, nodes in homes.items():
        causal.variable(name)
        if not nodes:
            raise BadSetting(f"variable '{name}' is aligned with no node: name at least one")
        check_nodes(model, nodes)
    for name in variables or ():
        if name not in homes:
            raise UnknownName("aligned variable", name, homes)
    chosen = {name: homes[name] for name in (homes if variables is None else variables)}
    if not chosen:
        raise BadSetting("no variable is aligned with a node: give an alignment such as {'previous': 'a0.h1'}")
    return chosen


def _checked_positions(positions: Sequence[int] | None, examples: Sequence[Example]) -> Int[np.ndarray, "P"] | None:
    if not examples:
        raise BadTask("there are no examples to intervene on")
    if positions is None:
        return None
    length = min(len(example) for example in examples)
    if not positions or not all(0 <= position < length for position in positions):
        raise BadSetting(f"positions={list(positions)} cannot be used: give token indices from 0 to {length - 1}")
    return np.array(positions)


def _chunks(model: Model, pairs: Sequence[Example], memory: str | int) -> Iterator[Chunk]:
    """Pairs of one length at a time: a causal model does not know of padding."""
    for _, group in groupby(pairs, len):
        yield from interchange_chunks(model, list(group), memory)


def _rows(where: Int[np.ndarray, "P"], shape: torch.Size) -> Bool[Tensor, "B T"]:
    rows = torch.zeros(shape, dtype=torch.bool)
    rows[:, where.tolist()] = True
    return rows


@dataclass(frozen=True)
class Hits:
    """Readings of all interventions so far: of which intervention, whether right, and whether the answer has changed."""

    of: Int[np.ndarray, "N"]
    right: Bool[np.ndarray, "N"]
    changed: Bool[np.ndarray, "N"]
    n: int

    @classmethod
    def empty(cls) -> "Hits":
        return cls(np.zeros(0, dtype=int), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 0)

    def add(
        self,
        reads: tuple[Tensor, Tensor],
        logits: Float[Tensor, "N V"],
        wanted: Int[Tensor, "B T"],
        before: Int[Tensor, "B T"],
    ) -> "Hits":
        """These and those of another chunk; readings without a defined answer are left out."""
        reads = (reads[0].cpu(), reads[1].cpu())
        labels, old = wanted[reads], before[reads]
        known = (labels != UNDEFINED).numpy()
        return Hits(
            np.concatenate([self.of, self.n + reads[0].numpy()[known]]),
            np.concatenate([self.right, (logits.argmax(-1).cpu() == labels).numpy()[known]]),
            np.concatenate([self.changed, (labels != old).numpy()[known]]),
            self.n + len(wanted),
        )

    def shares(self, only: Bool[np.ndarray, "N"] | None = None) -> Float[np.ndarray, "B"]:
        """Share of right readings of each intervention that has any; NaN for the others."""
        chosen = np.ones(len(self.of), dtype=bool) if only is None else only
        counts = np.bincount(self.of[chosen], minlength=self.n)
        sums = np.bincount(self.of[chosen], weights=self.right[chosen], minlength=self.n)
        with np.errstate(invalid="ignore"):
            return sums / counts


def _score(
    name: str,
    nodes: tuple[str, ...],
    others: list[tuple[str, ...]],
    hits: list[Hits],
    bases: Int[np.ndarray, "B"],
    examples: Sequence[Example],
    confidence: float,
) -> VariableScore:
    own = hits[0].shares()
    known = ~np.isnan(own)
    if not known.any():
        raise BadTask(f"after none of the {len(own)} interventions on '{name}' does the causal model have an answer")
    ends = _interval(own[known], bases[known], [one.group for one in examples], confidence)
    effective = hits[0].shares(hits[0].changed)
    return VariableScore(
        variable=name,
        nodes=nodes,
        n=int(known.sum()),
        undefined=int((~known).sum()),
        value=float(own[known].mean()),
        low=float(ends.low),
        high=float(ends.high),
        n_effective=int((~np.isnan(effective)).sum()),
        effective=_mean(effective),
        confidence=confidence,
        method=ends.method,
        controls=tuple(
            Control(set_, float(np.nanmean(one.shares())), _mean(one.shares(one.changed)))
            for set_, one in zip(others, hits[1:], strict=True)
        ),
    )


def _mean(shares: Float[np.ndarray, "B"]) -> float | None:
    return None if np.isnan(shares).all() else float(np.nanmean(shares))


def _interval(
    shares: Float[np.ndarray, "B"], bases: Int[np.ndarray, "B"], groups: Sequence[str], confidence: float
) -> Interval:
    """Base prompts are drawn again, each with all of its interventions; where they come in groups, groups of them."""
    prompts, of = np.unique(bases, return_inverse=True)
    hits, counts = np.bincount(of, weights=shares), np.bincount(of).astype(float)
    over = partition(len(prompts), [groups[prompt] for prompt in prompts])
    return share_interval(hits, counts, groups=over, confidence=confidence)
