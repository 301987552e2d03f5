"""Heads and neurons one by one: what they write, where they look, what is lost without them. `circuitdisc.heads` in Python.

    cd.heads.logit_attribution(model, task)               # what every component adds to the logit difference
    cd.heads.head_roles(model, task)                      # first-token, self, previous-token, duplicate-token, induction heads
    cd.heads.attention_to(model, task, query="end", key="s2")
    cd.heads.head_effects(model, task)                    # every head ablated alone
    cd.heads.knockout_curve(model, task)                  # ablated one after the other, beside random orders
    cd.heads.neuron_analysis(model, task, knock_out=["a3.h1"])  # comparative neuron analysis: the next three in one
    cd.heads.neurons(model, task, knock_out=["a3.h1"])    # importance of every neuron, with and without heads
    cd.heads.neuron_table(model, task, order)             # the top k neurons masked, or alone kept
    cd.heads.neuron_tokens(model, ["m3.n17"])             # the tokens that a neuron raises
    cd.heads.head_matrices(model)                         # key-query and output-value products of a toy's heads
    cd.dcm(model, desiderata, "group", circuit=circuit)   # which heads carry the value, the position, the label
    cd.localised(model, task, ["a3.h1"], "offset")        # a few heads edited: offsets, mixtures, first-token attention

Each returns a frozen result with the values of every example, `table()`, `to_frame()` and `to_dict()`.
"""

from circuitdisc.heads.attention import AttentionTo, attention_to
from circuitdisc.heads.dcm.dcm import dcm
from circuitdisc.heads.dcm.result import Dcm
from circuitdisc.heads.effects import HeadEffects, head_effects
from circuitdisc.heads.knockout import KnockoutCurve, knockout_curve
from circuitdisc.heads.localised.localised import localised
from circuitdisc.heads.localised.result import Localised
from circuitdisc.heads.logits import LogitAttribution, logit_attribution
from circuitdisc.heads.matrices import HeadMatrices, head_matrices
from circuitdisc.heads.neurons.analysis import NeuronAnalysis, neuron_analysis
from circuitdisc.heads.neurons.neurons import NeuronImportance, neurons
from circuitdisc.heads.neurons.table import NeuronTable, neuron_table
from circuitdisc.heads.neurons.tokens import NeuronTokens, neuron_tokens
from circuitdisc.heads.roles import ROLES, HeadRoles, head_roles

__all__ = [
    "ROLES",
    "AttentionTo",
    "Dcm",
    "HeadEffects",
    "HeadMatrices",
    "HeadRoles",
    "KnockoutCurve",
    "Localised",
    "LogitAttribution",
    "NeuronAnalysis",
    "NeuronImportance",
    "NeuronTable",
    "NeuronTokens",
    "attention_to",
    "dcm",
    "head_effects",
    "head_matrices",
    "head_roles",
    "knockout_curve",
    "localised",
    "logit_attribution",
    "neuron_analysis",
    "neuron_table",
    "neuron_tokens",
    "neurons",
]
