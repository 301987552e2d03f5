"""`zero`: a cut edge carries nothing."""

from circuitdisc.ablation.base import AblationKind


class Zero(AblationKind):
    """Nothing is carried."""

    constant = True
    empties_embedding = True

    @property
    def ablates_neurons(self) -> bool:
        return True
