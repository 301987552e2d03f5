"""Causal models: a task as variables that are computed from each other, without a network.

Every variable has a whole number at each position of each prompt. A variable reads its parents through named inputs; a parent
is another variable, or `tokens` or `positions`. What one input reads may be set to something else (an edge of the causal
model is intervened on), and so may a whole variable.

Shape letters: B prompts, T positions.

Source: Geiger et al. 2021, "Causal Abstractions of Neural Networks"; Geiger et al. 2022 (interchange interventions).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdisc.errors import BadSetting, UnknownName

UNDEFINED = -1  # the value of a variable where it has none, for example of a lookup that finds nothing
GIVEN = ("tokens", "positions")  # parents that every causal model has
ANSWER = ("logits", "logits")  # the edge over which the answer is read


@dataclass(frozen=True)
class Variable:
    """One variable.

    Args:
        name: its name.
        reads: input -> parent. Where the variable lives in a head, the inputs are among `q`, `k` and `v`.
        compute: values of the parents by input, each [B T] -> its value, `UNDEFINED` where it has none. [B T]
    """

    name: str
    reads: Mapping[str, str]
    compute: Callable[..., Int[Tensor, "B T"]]


@dataclass(frozen=True)
class Setting:
    """Something set from outside: what to, and where; None: everywhere."""

    values: Int[Tensor, "B T"]
    where: Bool[Tensor, "B T"] | None = None

    def over(self, values: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """These values where nothing is set, and else what was set."""
        return self.values if self.where is None else torch.where(self.where, self.values, values)


@dataclass(frozen=True)
class CausalModel:
    """Variables in an order in which each follows its parents; the last one is the answer, as a column of the logits.

    Args:
        variables: all of them.
        name: for messages and tables.

    Raises:
        BadSetting: there is no variable, a name is taken twice, or a parent does not come before its child.
    """

    variables: tuple[Variable, ...]
    name: str = "causal model"
    by_name: dict[str, Variable] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.variables:
            raise BadSetting(f"{self.name} has no variable: give at least the answer")
        for variable in self.variables:
            if variable.name in (*self.by_name, *GIVEN, ANSWER[0]):
                raise BadSetting(
                    f"{self.name} has two variables '{variable.name}': names differ, and are not {', '.join(GIVEN)}"
                )
            for parent in variable.reads.values():
                if parent not in (*self.by_name, *GIVEN):
                    raise BadSetting(f"'{variable.name}' of {self.name} reads '{parent}', which is not a variable before it")
            self.by_name[variable.name] = variable

    @property
    def answer(self) -> str:
        """Name of the variable that is the answer."""
        return self.variables[-1].name

    @property
    def edges(self) -> tuple[tuple[str, str, str], ...]:
        """Parent, variable and input of every edge, the one from the answer to the logits last."""
        inner = [(parent, variable.name, name) for variable in self.variables for name, parent in variable.reads.items()]
        return (*inner, (self.answer, *ANSWER))

    def variable(self, name: str) -> Variable:
        """The variable of this name.

        Raises:
            UnknownName: there is none.
        """
        if name not in self.by_name:
            raise UnknownName(f"variable of {self.name}", name, self.by_name)
        return self.by_name[name]

    def run(
        self,
        tokens: Int[Tensor, "B T"],
        variables: Mapping[str, Setting] | None = None,
        edges: Mapping[tuple[str, str], Setting] | None = None,
    ) -> dict[str, Int[Tensor, "B T"]]:
        """Values of all variables, of the givens, and of what the logits read (`logits`).

        Args:
            variables: name -> what it is set to.
            edges: (variable, input) -> what this input reads instead of its parent; ("logits", "logits") for the answer.
        """
        set_variables, set_edges = variables or {}, edges or {}
        for name in set_variables:
            self.variable(name)
        values = {"tokens": tokens, "positions": torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)}

        def read(child: str, slot: str, parent: str) -> Int[Tensor, "B T"]:
            setting = set_edges.get((child, slot))
            return values[parent] if setting is None else setting.over(values[parent])

        for variable in self.variables:
            value = variable.compute(**{slot: read(variable.name, slot, parent) for slot, parent in variable.reads.items()})
            setting = set_variables.get(variable.name)
            values[variable.name] = value if setting is None else setting.over(value)
        values["logits"] = read(*ANSWER, self.answer)
        return values
