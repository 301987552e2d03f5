"""Strict interchange-intervention training: the losses that make a toy implement a program at its nodes, and nothing else.

Each step draws a batch of base prompts and, from the same batch, a source and another prompt for each. The toy runs on the
batch, and runs again with

    true edges       of a third of the prompts, all edges out of one variable's node carry what it wrote on the source prompt
                     (an interchange intervention); of another third, a random half of the true edges do, each on its own
    all other edges  none, all, or a random share of them carry what their senders wrote on the other prompt (strictness), or,
                     in a quarter of the steps, their mean over the batch at each position

and three losses:

    behaviour        the plain run gives the program's answer
    interchange      the changed run gives the causal model's answer under the same changes
    strict           where no true edge was changed, the changed run's logits are the plain run's

All targets are smoothed, so that the logits of every run are drawn to the same finite values. In the first part of training
a fourth loss helps: a linear readout at each position of what a variable's node writes in the changed run, to the variable's
value in the changed causal model; none for those in `program.scalars`. The readouts are thrown away.

Source: Gupta et al. 2024, "InterpBench" (strict interchange-intervention training); Geiger et al. 2022
(interchange-intervention training). docs/siit.md says where this departs from the former.

Shape letters: B prompts, T positions, R receivers, S senders, E true edges, D residual width, V answers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitdisc.known.causal import UNDEFINED, Setting
from circuitdisc.known.siit.edge_run import Carried, EdgeRun
from circuitdisc.known.siit.program import SiitProgram
from circuitdisc.known.siit.truth import true_edges
from circuitdisc.models.toy import ToyTransformer

SMOOTHING = 0.02  # of the targets: share of the probability that is spread over all answers


@dataclass(frozen=True)
class Losses:
    """The losses of one step."""

    behaviour: Float[Tensor, ""]
    interchange: Float[Tensor, ""]
    strict: Float[Tensor, ""]
    readout: Float[Tensor, ""]

    def total(self, *, behaviour: float = 1.0, readout: float = 0.0) -> Float[Tensor, ""]:
        """Their sum, two of them weighted."""
        return behaviour * self.behaviour + self.interchange + self.strict + readout * self.readout


class Trainer:
    """A toy in training for one program.

    Args:
        program: what it is to implement.
        seed: of its first weights and of all that is drawn but the prompts.
    """

    def __init__(self, program: SiitProgram, seed: int = 0) -> None:
        self.program, self.graph, self.causal = program, program.graph, program.causal
        self.toy = ToyTransformer(program.config, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.edges = [edge for edge in true_edges(program) if edge.parent != "positions"]
        self.places = [self.graph.parse_edge(edge.name) for edge in self.edges]
        self.may_cut = torch.from_numpy(self.graph.edge_mask.copy())
        for receiver, sender in self.places:
            self.may_cut[receiver, sender] = False
        self.reads = torch.tensor(program.positions)
        config = program.config
        shapes = {
            name: (config.n_ctx, config.d_model, program.sizes[name]) for name in program.nodes if name not in program.scalars
        }
        self.readouts = {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [*self.toy.parameters(), *self.readouts.values()]

    def losses(self, tokens: Int[Tensor, "B T"]) -> Losses:
        """The losses on one batch of prompts."""
        plain = EdgeRun(self.toy, self.graph, tokens)
        source, other = self._permutation(tokens), self._permutation(tokens)
        swapped = self._draw_swapped(tokens)
        senders = plain.senders
        ablated = senders.mean(1, keepdim=True).expand_as(senders) if self._uniform() < 0.25 else senders[:, other]
        carried = Carried(
            ablated,
            self._draw_cut(len(tokens)),
            senders[:, source],
            {place: swapped[:, :, index] for index, place in enumerate(self.places)},
        )
        changed = EdgeRun(self.toy, self.graph, tokens, carried)
        answers = self.causal.run(tokens)
        settings = {
            (edge.child, edge.slot): Setting(answers[edge.parent][source], swapped[:, :, index])
            for index, edge in enumerate(self.edges)
        }
        counterfactual = self.causal.run(tokens, edges=settings)
        untouched = ~swapped.flatten(1).any(1)
        gap = (changed.logits - plain.logits.detach())[untouched][:, self.reads]
        gap = gap - gap.mean(-1, keepdim=True)  # a shift of all logits is no change
        return Losses(
            self._cross_entropy(plain.logits, answers["logits"]),
            self._cross_entropy(changed.logits, counterfactual["logits"]),
            gap.pow(2).mean(),
            self._readout_loss(changed, counterfactual),
        )

    def _cross_entropy(self, logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Where answers are read and defined, less its least value."""
        n = logits.shape[-1]
        rest = torch.tensor(SMOOTHING / n)
        least = -(1 - SMOOTHING + rest) * (1 - SMOOTHING + rest).log() - (n - 1) * rest * rest.log()
        logits, labels = logits[:, self.reads].flatten(0, 1), labels[:, self.reads].flatten()
        return functional.cross_entropy(logits, labels, ignore_index=UNDEFINED, label_smoothing=SMOOTHING) - least

    def _readout_loss(self, run: EdgeRun, values: dict[str, Int[Tensor, "B T"]]) -> Float[Tensor, ""]:
        losses = []
        for name, readout in self.readouts.items():
            written = run.sent[self.graph.sender_index[self.program.nodes[name]]]
            logits = torch.einsum("btd,tdv->btv", written, readout)
            losses.append(functional.cross_entropy(logits.flatten(0, 1), values[name].flatten(), ignore_index=UNDEFINED))
        return torch.stack(losses).mean()

    # --- what is drawn -----------------------------------------------------------------------------------------------

    def _uniform(self, *shape: int) -> Float[Tensor, "..."]:
        return torch.rand(shape, generator=self.generator)

    def _permutation(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        return torch.randperm(len(tokens), generator=self.generator)

    def _draw_swapped(self, tokens: Int[Tensor, "B T"]) -> Bool[Tensor, "B T E"]:
        """Where each true edge carries the source's value: at all positions of half of the prompts, else at a random half."""
        (n, length), n_variables = tokens.shape, len(self.causal.variables)
        parents = torch.tensor([[edge.parent == variable.name for edge in self.edges] for variable in self.causal.variables])
        chosen = parents[torch.randint(n_variables, (n,), generator=self.generator)]
        alone = self._uniform(n, len(self.edges)) < 0.5
        kind = self._uniform(n, 1)
        swapped = torch.where(kind < 1 / 3, False, torch.where(kind < 2 / 3, chosen, alone))
        where = (self._uniform(n, 1, 1) < 0.5) | (self._uniform(n, length, 1) < 0.5)
        return swapped[:, None] & where

    def _draw_cut(self, n: int) -> Bool[Tensor, "B R S"]:
        """Which other edges are cut: none in a quarter of the prompts, all in another, else a random share."""
        share = (2 * self._uniform(n, 1, 1) - 0.5).clamp(0, 1)
        return (self._uniform(n, *self.may_cut.shape) < share) & self.may_cut
