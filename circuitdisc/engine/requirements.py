"""What a tool or an algorithm needs of a model, an ablation and a metric: fast components, gradients."""

from circuitdisc.ablation import Ablation
from circuitdisc.engine.selfcheck import verify
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.models.backend import Capability
from circuitdisc.models.components import Components
from circuitdisc.models.families import listed_families
from circuitdisc.models.model import Model, fast_components


def components_of(model: Model, what: str, whole: bool = False) -> Components:
    """The model's fast components.

    Args:
        what, whole: as of `fast_components`.

    Raises:
        BadSetting: it has none, or not whole.
        BadModel: they are not (or no longer) the module that they were made of.
    """
    components = fast_components(model, what, whole)
    verify(model)
    return components


def require(model: Model, capability: Capability, what: str, rest: str = "") -> None:
    """The model can do this.

    Args:
        what: needs it and why, for the message.
        rest: the message's end.

    Raises:
        BadSetting: it cannot.
    """
    if not model.can(capability):
        raise BadSetting(
            f"{what}, and {model.name} ({model.architecture}) {model.backend.how}: it works with {listed_families()}{rest}"
        )


def gradients_of(model: Model, ablation: Ablation, metric: Metric, name: str) -> Components:
    """The model's components, if algorithm `name` can follow the metric's gradient through them.

    Raises:
        BadSetting: the model runs by hooks, the ablation replaces patterns, or the metric has no gradient.
        BadModel: the components are not (or no longer) the module that they were made of.
    """
    rest = "; algorithms that only run circuits, such as acdc, work here, slowly"
    require(model, "gradients", f"algorithm '{name}' needs gradients layer by layer", rest)
    if ablation.target == "pattern":
        raise BadSetting(f"algorithm '{name}' weighs edges between outputs: use ablation.target=output")
    if not metric.differentiable:
        raise BadSetting(
            f"algorithm '{name}' follows the metric's gradient, and '{metric.name}' is constant almost everywhere: "
            "use metric=logit_diff or metric=log_prob"
        )
    verify(model)
    return model.components
