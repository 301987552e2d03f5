"""`optimal`: a cut edge carries a constant of its sender, learned so that cutting the sender loses least.

For each sender s alone, the constant is

    a_s = argmin over a of the mean over the train examples of KL(full model || model in which s writes a at every token)

where the KL is at the readings of an example (their mean), over the whole vocabulary, and s writes a on all of its outgoing
edges; all other senders are live. It is one constant for all positions and groups. A head's is a z, a value before W_O, so that
what the head carries is something that it could write; an MLP's and an embedding's is of the residual stream's width.

1. Start at the sender's mean over all tokens of the train examples' clean prompts.
2. Take `steps` steps of Adam on all train examples at once, in units of the sender's standard deviation over these tokens, with
   a learning rate that falls linearly from `learning_rate` to 0.
3. Keep the constant of the step with the lowest loss: it loses no more than the mean over the data set.

Nothing is random, so that the constants are the same whenever they are learned again. They are kept for the next call with the
same weights, examples and settings. A fit takes as many forward and backward passes behind each sender as there are steps.

Source: Li and Janson 2024, "Optimal ablation for interpretability" (https://arxiv.org/abs/2409.09951), for single
components. What differs: where a circuit cuts several senders, each carries the constant learned for it alone; the paper learns
the constants of a circuit together, and again for each circuit, which loses no more.

Shape letters: B examples, T positions, H heads, K head width, D residual width, X width of a constant (K or D), n tokens.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation.base import AblationKind, Constants, Source
from circuitdisc.checks import RATE, STEPS, bounded
from circuitdisc.errors import BadSetting
from circuitdisc.identity import identity_of
from circuitdisc.metrics import METRICS
from circuitdisc.models.model import fast_components

if TYPE_CHECKING:
    from circuitdisc.ablation.settings import Ablation
    from circuitdisc.engine.source import CleanRun

KL = METRICS["kl"]  # minus the divergence: higher is better
KEPT = 8
"""Learned constants of so many models, example sets and settings are kept for the next call."""
_learned: dict[str, Constants] = {}

Values = Callable[["CleanRun", Float[Tensor, "X"]], Float[Tensor, "B"]]


class Optimal(AblationKind):
    """A learned constant for each sender, with which the model loses least (Li and Janson 2024).

    Args:
        steps: steps of gradient descent for each sender.
        learning_rate: of the first step, in standard deviations of what the sender writes.
    """

    constant = True

    @bounded(steps=STEPS, learning_rate=RATE)
    def __init__(self, ablation: "Ablation", *, steps: int = 50, learning_rate: float = 0.1) -> None:
        super().__init__(ablation)
        self.steps, self.learning_rate = steps, learning_rate
        if ablation.target == "pattern":
            raise BadSetting(
                "ablation optimal learns what a sender writes, and target=pattern cuts attention: use target=output"
            )

    @property
    def label(self) -> str:
        return f"optimal (learned constants, {self.steps} steps of {self.learning_rate:g})"

    def fit(self, source: Source) -> Constants:
        """The constants of all senders.

        Raises:
            BadSetting: the model runs by hooks, or has a single output.
        """
        model = source.model
        fast_components(model, "ablation=optimal")
        if model.d_vocab_out < KL.least_outputs:
            raise BadSetting(
                f"ablation=optimal minimises the KL divergence to the full model, which is 0 with the single output of "
                f"{model.name}: use ablation=mean"
            )
        settings = {"ablation": self.ablation.to_dict(), "device": str(model.device), "dtype": str(model.dtype)}
        key = identity_of(model, {"train examples": source.examples}, settings).digest
        if key not in _learned:
            constants = self._learn(source.clean_runs())
            for oldest in list(_learned)[: len(_learned) + 1 - KEPT]:
                del _learned[oldest]
            _learned[key] = constants
        return _learned[key]

    def constants(self, fitted: Constants, source: Source) -> Constants:
        return fitted

    def _learn(self, runs: "Sequence[CleanRun]") -> Constants:
        """Sender by sender, from the embedding on; of the clean runs one layer at a time is held."""
        graph = runs[0].graph
        written = [run.embedding for run in runs]
        embedding = [self._best(runs, [rows[e] for rows in written], _without_embedding(e)) for e in range(len(written[0]))]
        z, mlp = dict[int, Tensor](), dict[int, Tensor]()
        for layer, states in enumerate(zip(*(run.layers() for run in runs), strict=True)):
            before = {id(run): state.x for run, state in zip(runs, states, strict=True)}
            of_heads = [state.z * run.scale(layer) for run, state in zip(runs, states, strict=True)]
            z[layer] = torch.stack([
                self._best(runs, [rows[head] for rows in of_heads], _without_head(layer, head, before))
                for head in range(graph.n_heads)
            ])  # fmt: skip
            if graph.has_mlp:
                outputs = [state.mlp for state in states if state.mlp is not None]
                mlp[layer] = self._best(runs, outputs, _without_mlp(layer, before))
        return Constants(torch.stack(embedding), z, mlp)

    def _best(
        self, runs: "Sequence[CleanRun]", written: Sequence[Float[Tensor, "B T X"]], values: Values
    ) -> Float[Tensor, "X"]:
        """The constant of one sender.

        Args:
            written: what it writes in each of the clean runs.
            values: a clean run and a constant -> minus the divergence when the sender writes this.
        """
        tokens_nX = torch.cat([rows[run.batch.is_token] for run, rows in zip(runs, written, strict=True)]).double()
        mean, n = tokens_nX.mean(0), sum(run.batch.n_examples for run in runs)
        deviation = (tokens_nX - mean).square().mean().sqrt()
        shift = torch.zeros_like(mean, requires_grad=True)
        optimiser = torch.optim.Adam([shift], lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, self.steps)
        best, highest = mean, -torch.inf
        for _ in range(self.steps + 1 if deviation > 0 else 0):
            total, shift.grad = 0.0, torch.zeros_like(shift)
            for run in runs:
                with torch.enable_grad():
                    value = values(run, (mean + deviation * shift).to(written[0].dtype)).double().sum() / n
                    shift.grad -= torch.autograd.grad(value, shift)[0]
                total += float(value.detach())
            if total > highest:
                best, highest = (mean + deviation * shift).detach(), total
            optimiser.step()
            schedule.step()
        return best.to(written[0].dtype)


def _without_embedding(index: int) -> Values:
    def values(run: "CleanRun", constant: Float[Tensor, "D"]) -> Float[Tensor, "B"]:
        rows = run.embedding
        return run.values(KL, rows.sum(0) - rows[index] + constant, {})

    return values


def _without_head(layer: int, head: int, before: dict[int, Float[Tensor, "B T D"]]) -> Values:
    def values(run: "CleanRun", constant: Float[Tensor, "K"]) -> Float[Tensor, "B"]:
        def replace(at: int, z: Float[Tensor, "H B T K"]) -> Float[Tensor, "H B T K"]:
            if at != layer:
                return z
            return torch.cat([z[:head], constant.expand_as(z[:1]) / run.scale(layer), z[head + 1 :]])

        return run.values(KL, before[id(run)], {"z": replace}, layer)

    return values


def _without_mlp(layer: int, before: dict[int, Float[Tensor, "B T D"]]) -> Values:
    def values(run: "CleanRun", constant: Float[Tensor, "D"]) -> Float[Tensor, "B"]:
        def replace(at: int, written: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
            return constant.expand_as(written) if at == layer else written

        return run.values(KL, before[id(run)], {"mlp_out": replace}, layer)

    return values
