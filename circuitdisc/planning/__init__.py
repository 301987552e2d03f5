"""A plan before a run: counts, memory and time."""

from circuitdisc.planning.models import open_model as open_model
from circuitdisc.planning.plan import plan as plan
from circuitdisc.planning.result import RunPlan as RunPlan

__all__ = ["RunPlan", "open_model", "plan"]
