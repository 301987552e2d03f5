"""`mean`: a cut edge carries its sender's average over the clean or the corrupted prompts of the reference examples.

Shape letters: H heads, B examples, T positions, T2 positions attended to.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from circuitdisc.ablation.base import AblationKind, Pattern, Scope, Site, Source, Write
from circuitdisc.ablation.means import Means
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import Example, PromptBatch

OVER = {"group": "per group and position", "position": "per position", "dataset": "over the data set"}


class Mean(AblationKind):
    """The sender's average over the train split: per group and position, per position, or over everything."""

    cancels = "under mean ablation a metric that is linear in what is cut changes by 0 in the mean, by construction"

    @property
    def label(self) -> str:
        settings = self.ablation
        return f"mean ({OVER[settings.scope]}{', corrupted prompts' if settings.prompts == 'corrupted' else ''})"

    @property
    def needs_corrupted(self) -> bool:
        return self.ablation.prompts == "corrupted"

    @property
    def averages(self) -> Scope:
        return self.ablation.scope

    @property
    def ablates_neurons(self) -> bool:
        return self.ablation.prompts == "clean"

    def carries_alike(self, examples: Sequence[Example]) -> bool:
        scope = self.ablation.scope
        one_group = scope != "group" or len({example.group for example in examples}) == 1
        return scope == "dataset" or (one_group and len({len(example) for example in examples}) == 1)

    def fit(self, source: Source) -> dict[Site, Means]:
        """The averages of every site, in one run of the reference examples.

        Raises:
            BadSetting: attention patterns are to be averaged over positions.
        """
        if self.ablation.target == "pattern" and self.ablation.scope == "dataset":
            raise BadSetting("an attention pattern has no average over positions: use ablation.scope=group or position")
        averages: dict[Site, Means] = {}
        for batch in source.batches():

            def add(site: Site, values: Tensor, batch: PromptBatch = batch) -> None:
                if isinstance(site, Pattern):  # as wide in every batch
                    values = functional.pad(values, (0, source.longest - values.shape[-1]))
                means = averages.setdefault(site, Means(self.ablation.scope))
                means.add(values, batch.position_ids, batch.is_token, batch.groups)

            source.run(self.tokens(batch), batch, add)
        source.cost.model_runs += 1
        return averages

    def carry(self, fitted: dict[Site, Means], source: Source, batch: PromptBatch, write: Write) -> None:
        for site, means in fitted.items():
            values = means.values(batch.position_ids, batch.groups, source.dtype)
            write(site, _at_keys(values, batch) if isinstance(site, Pattern) else values)


def _at_keys(pattern: Float[Tensor, "H B T L"], batch: PromptBatch) -> Float[Tensor, "H B T T2"]:
    """An average pattern for a batch: its column j is of the key at position j of its own prompt."""
    length = batch.clean.shape[1]
    if pattern.shape[-1] < length:
        raise BadTask(f"a prompt of {length} tokens is longer than any that the attention patterns were averaged over")
    keys = batch.position_ids[None, :, None, :].expand(pattern.shape[0], -1, length, -1)
    return pattern.expand(-1, batch.n_examples, -1, -1).gather(-1, keys) * batch.is_token[None, :, None, :]
