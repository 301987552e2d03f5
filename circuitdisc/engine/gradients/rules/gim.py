"""GIM: gradient interaction modifications.

Backwards,

- a norm's divisor is a constant;
- the softmax of attention has the slope of a softer one, at temperature 2, so that a saturated pattern passes
  gradients, too;
- where two computed values are multiplied, each has its part of the gradient: a quarter for queries and keys, which meet in a
  product that meets the values in another, half for values, and half for both factors of a gated MLP.

Source: Edin et al. 2025, "GIM: Improved Interpretability for Large Language Models", section 4
(https://arxiv.org/abs/2505.17630). The halves of gated MLPs are those of the authors' later code.
"""

from circuitdisc.models.backward import BackwardRule

RULE = BackwardRule(holds_norms=True, temperature=2.0, shares=(0.25, 0.25, 0.5), product=0.5)
