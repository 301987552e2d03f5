"""What `localised` finds: the edit, what it does to held-out examples, and what random heads do.

Shape letters: L layers, H heads, B examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.graph import Node
from circuitdisc.heads.localised.fit import Learned
from circuitdisc.heads.localised.head_edits import HeadEdit
from circuitdisc.results import Result, Row, plain_rows


@dataclass(frozen=True, repr=False)
class EditEffect(Result):
    """What an edit does to one metric on the held-out examples.

    Args:
        before, after: means without and with it, with intervals; so has their difference.
        controls: the difference when as many random heads are edited, each trained and chosen anew.
    """

    KEYS = (
        "metric", "n", "before", "before_low", "before_high", "after", "after_low", "after_high", "difference", "low", "high",
        "controls", "p_value",
    )  # fmt: skip

    metric: str
    n: int
    before: float
    before_low: float
    before_high: float
    after: float
    after_low: float
    after_high: float
    difference: float
    low: float
    high: float
    controls: tuple[float, ...]

    @property
    def p_value(self) -> float | None:
        """Share of the choices of heads, this one among them, that raise the metric at least as much; None without controls."""
        if not self.controls:
            return None
        return (1 + sum(control >= self.difference for control in self.controls)) / (1 + len(self.controls))


@dataclass(frozen=True, repr=False)
class Localised(Result):
    """A localised intervention and its effect.

    Args:
        kind: `offset`, `inject` or `first_token`.
        learned: the edit that was chosen, and what it was chosen from.
        effects: of the metric, and of accuracy.
        controls: heads and edit of each random draw.
        norms: for `heads="lofit"`, the size of every head's scaling; else empty.
        sizes: examples of each split.
        unedited: mean metric of the second split without an edit, to compare the choice with.
        values: metric values of the held-out examples: `before <metric>`, `after <metric>`. [B]
    """

    KEYS = (
        "kind", "heads", "chosen", "history", "unedited on the second split=unedited", "effects", "by_head", "random_heads",
        "random_chosen", "norms", "n=sizes", "confidence",
    )  # fmt: skip

    kind: str
    learned: Learned
    effects: tuple[EditEffect, ...]
    controls: tuple[Learned, ...]
    norms: Mapping[str, float]
    sizes: Mapping[str, int]
    unedited: float
    shape: tuple[int, int]
    confidence: float
    values: Mapping[str, Float[np.ndarray, "B"]]

    @property
    def n(self) -> int:
        """Held-out examples."""
        return self.effects[0].n

    @property
    def heads(self) -> tuple[str, ...]:
        """The edited heads."""
        return self.edit.heads

    @property
    def chosen(self) -> Row:
        """What the edit was made with, and the mean metric that it was chosen by."""
        return self.learned.best

    @property
    def history(self) -> tuple[Row, ...]:
        """A line for every candidate."""
        return self.learned.history

    @property
    def by_head(self) -> list[Row]:
        return self.head_table()

    @property
    def random_heads(self) -> list[tuple[str, ...]]:
        """The heads of each random draw."""
        return [control.edit.heads for control in self.controls]

    @property
    def random_chosen(self) -> list[Row]:
        """What the edit of each random draw was made with."""
        return [control.best for control in self.controls]

    @property
    def edit(self) -> HeadEdit:
        return self.learned.edit

    def get(self, metric: str) -> EditEffect:
        """The effect on one metric."""
        return {effect.metric: effect for effect in self.effects}[metric]

    def table(self) -> list[Row]:
        """A line a metric."""
        return plain_rows(
            {
                "metric": effect.metric,
                "n": effect.n,
                "before": effect.before,
                "after": effect.after,
                "difference": effect.difference,
                "low": effect.low,
                "high": effect.high,
                "random heads": float(np.median(effect.controls)) if effect.controls else None,
                "random high": max(effect.controls) if effect.controls else None,
                "p": effect.p_value,
            }
            for effect in self.effects
        )

    def head_table(self) -> list[Row]:
        """A line an edited head: size of its vector, share of the task's vector, or the factor."""
        edit, rows = self.edit, []
        for row, head in enumerate(edit.heads):
            line: Row = {"head": head}
            if edit.kind == "offset" and edit.vectors is not None:
                line["norm of the offset"] = float(edit.vectors[row].double().norm())
            if edit.shares is not None:
                line["share of the vector"] = float(edit.shares[row])
            if edit.factor is not None:
                line["factor"] = edit.factor
            if self.norms:
                line["norm of its scaling"] = self.norms[head]
            rows.append(line)
        return plain_rows(rows)

    def head_map(self) -> Float[np.ndarray, "L H"]:
        """The last column of `head_table` that says how much each head is edited, layer by head; NaN elsewhere."""
        values = np.full(self.shape, np.nan)
        column = {"offset": "norm of the offset", "inject": "share of the vector", "first_token": "factor"}[self.kind]
        for row in self.head_table():
            node = Node.parse(str(row["head"]))
            values[node.layer, node.head] = row[column]
        return values

    def arrays(self) -> dict[str, np.ndarray]:
        """Values of every held-out example, by name."""
        return {name.replace(" ", "_"): values for name, values in self.values.items()}
