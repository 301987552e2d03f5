"""Rules for the backward pass of attribution, one file each."""

from circuitdisc.engine.gradients.rules import gim, relp
from circuitdisc.models.backward import PLAIN, BackwardRule

RULES: dict[str, BackwardRule] = {"plain": PLAIN, "relp": relp.RULE, "gim": gim.RULE}
