"""What interchange accuracy gives: figures of each variable, with those of control nodes beside them."""

from dataclasses import dataclass

from circuitdisc.errors import UnknownName
from circuitdisc.results import Result, Row


@dataclass(frozen=True)
class Control:
    """The same interventions at other nodes."""

    nodes: tuple[str, ...]
    value: float
    effective: float | None


@dataclass(frozen=True, repr=False)
class VariableScore(Result):
    """Interchange accuracy of one variable.

    Args:
        variable: its name.
        nodes: where it is said to live.
        n: interventions.
        undefined: how many more were left out, after which the causal model has no answer.
        value: share whose output is the causal model's answer; of a prompt with several answers, the share of those.
        low, high: Wilson's interval, base prompts (or their groups) drawn again with all of their interventions.
        n_effective: interventions that change an answer of the causal model.
        effective: the share among the answers that change; None if none does.
        confidence: coverage of the interval.
        controls: the same at other nodes.
        method: how the interval was made, and over what.
    """

    variable: str
    nodes: tuple[str, ...]
    n: int
    undefined: int
    value: float
    low: float
    high: float
    n_effective: int
    effective: float | None
    confidence: float = 0.95
    controls: tuple[Control, ...] = ()
    method: str = ""

    def table(self) -> list[Row]:
        """The figures in one line."""
        effective = [control.effective for control in self.controls if control.effective is not None]
        return [
            {
                "variable": self.variable,
                "nodes": ", ".join(self.nodes),
                "n": self.n,
                "accuracy": self.value,
                "low": self.low,
                "high": self.high,
                "effective n": self.n_effective,
                "effective": self.effective,
                "controls": len(self.controls),
                "best control": max((control.value for control in self.controls), default=None),
                "best control, effective": max(effective, default=None),
            }
        ]


@dataclass(frozen=True, repr=False)
class InterchangeScores(Result):
    """Interchange accuracy of every variable that was asked for.

    Args:
        model, causal: their names.
        scores: one for each variable.
    """

    FORMAT = "circuitdisc.interchange_scores"

    model: str
    causal: str
    scores: tuple[VariableScore, ...]

    def get(self, variable: str) -> VariableScore:
        """The score of one variable.

        Raises:
            UnknownName: it was not measured.
        """
        for score in self.scores:
            if score.variable == variable:
                return score
        raise UnknownName("measured variable", variable, [score.variable for score in self.scores])

    @property
    def worst(self) -> VariableScore:
        """The variable with the lowest accuracy."""
        return min(self.scores, key=lambda score: score.value)

    def table(self) -> list[Row]:
        """A line for each variable."""
        return [row for score in self.scores for row in score.table()]
