"""What the hypothesis tests give: one line a test, one line an edge, and the numbers that they are made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.results import Result, Row


@dataclass(frozen=True, repr=False)
class HypothesisTest(Result):
    """One test.

    Args:
        name: `equivalence`, `independence`, `minimality`, `sufficiency` or `partial necessity`.
        null: the hypothesis in words.
        measure: what the statistic is.
        statistic: its value.
        p_value: probability of a statistic at least as extreme if the hypothesis holds; for minimality the smallest of all
            edges, corrected for their number (Holm).
        alpha: the hypothesis is rejected if `p_value` is not above it.
        n: what was counted: untied examples (equivalence), examples (independence), random draws (the others).
        ideal_rejects: True if the test of an ideal circuit rejects, False if it does not.
        note: anything a reader must know.
    """

    KEYS = ("*", "reject", "for_circuit")

    name: str
    null: str
    measure: str
    statistic: float
    p_value: float
    alpha: float
    n: int
    ideal_rejects: bool
    note: str = ""

    @property
    def reject(self) -> bool:
        return self.p_value <= self.alpha

    @property
    def for_circuit(self) -> bool:
        """Whether the outcome is that of an ideal circuit. A hypothesis that is not rejected has not been proved."""
        return self.reject == self.ideal_rejects


@dataclass(frozen=True, repr=False)
class MemberTests(Result):
    """Minimality, edge by edge (of a head circuit: head by head). N members tested, C inflated circuits.

    Args:
        names: what was removed from the circuit.
        effects: how far the circuit moves without it: mean over examples of the absolute difference. [N]
        chance: how far each inflated circuit moves without a random added member. [C]
        shares: share of `chance` below each effect. [N]
        p_values: of each, uncorrected. [N]
        adjusted: the same after Holm's correction. [N]
        rejected: True where the member does no more than random ones. [N]
    """

    names: tuple[str, ...]
    effects: Float[np.ndarray, "N"]
    chance: Float[np.ndarray, "C"]
    shares: Float[np.ndarray, "N"]
    p_values: Float[np.ndarray, "N"]
    adjusted: Float[np.ndarray, "N"]
    rejected: Bool[np.ndarray, "N"]

    def table(self) -> list[Row]:
        """A line a member, the least important first."""
        return [
            {
                "member": self.names[index],
                "effect": float(self.effects[index]),
                "share": float(self.shares[index]),
                "p": float(self.p_values[index]),
                "p (Holm)": float(self.adjusted[index]),
                "reject": bool(self.rejected[index]),
            }
            for index in np.argsort(self.effects, kind="stable")
        ]


@dataclass(frozen=True, repr=False)
class HypothesisTests(Result):
    """All five tests of one circuit. B examples, C random circuits.

    Args:
        tests: one of each.
        members: minimality, edge by edge.
        values: `full`, `circuit`, `complement` -> metric. [B]
        random: distance of each random circuit from the full model. [C]
        random_complements: the same of the full model without each random circuit. [C]
        n: examples.
        settings: ablation, metric, split and everything else that was set.
    """

    FORMAT = "circuitdisc.hypothesis_tests"

    tests: tuple[HypothesisTest, ...]
    members: MemberTests
    values: Mapping[str, Float[np.ndarray, "B"]]
    random: Float[np.ndarray, "C"]
    random_complements: Float[np.ndarray, "C"]
    n: int
    settings: Mapping[str, Any]

    def get(self, name: str) -> HypothesisTest:
        """The test with this name.

        Raises:
            KeyError: there is none.
        """
        for test in self.tests:
            if test.name == name:
                return test
        raise KeyError(f"no test '{name}'")

    def table(self) -> list[Row]:
        """A line a test."""
        return [
            {
                "test": test.name,
                "H0": test.null,
                "measure": test.measure,
                "statistic": test.statistic,
                "p": test.p_value,
                "n": test.n,
                "reject": test.reject,
                "for the circuit": test.for_circuit,
                "note": test.note,
            }
            for test in self.tests
        ]
