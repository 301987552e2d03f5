"""RelP: relevance patching, attribution with the coefficients of layer-wise relevance propagation in place of slopes.

Backwards,

- a norm's divisor is a constant (the LN rule; the subtraction of the mean stays);
- an activation y = f(x) counts as the product of x and the constant y / x (the identity rule);
- each factor of a gated MLP's product has half of its gradient (the half rule);
- linear maps are left as they are, and so is attention, as in the authors' own runs.

Source: Rezaei Jafari, Eberle, Khakzar and Nanda 2025, "RelP: Faithful and Efficient Circuit Discovery in Language Models via
Relevance Patching", section 3 (https://arxiv.org/abs/2508.21258).
"""

from circuitdisc.models.backward import BackwardRule

RULE = BackwardRule(holds_norms=True, proportional=True, product=0.5)
