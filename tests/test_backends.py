"""Two backends of one model: the same facts, the same runs; what one cannot do it says."""

from typing import get_args

import numpy as np
import pytest
import torch
from examples import random_examples
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.engine.backends import full_run, runner
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.requirements import require
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric
from circuitdisc.models.backend import Capability


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox"])
def pair(request):
    return model_of(request.param), model_of(request.param, components="hooks")


def test_facts_are_the_same(pair):
    fast, hooked = pair
    for fact in ("d_model", "d_head", "dtype", "device", "heads_per_group"):
        assert getattr(fast.backend, fact) == getattr(hooked.backend, fact), fact
    assert fast.graph.to_dict() == hooked.graph.to_dict()


def near(left, right, atol=1e-5):
    """The bridge takes softmaxes in float32."""
    torch.testing.assert_close(left, right, atol=atol, rtol=1e-4)


def runs_of(model, examples, mask):
    """What senders write in the whole model; the full model's logits and a circuit's; those from the circuit's removal."""
    (chunk,) = Patching(model, Ablation("resample"), examples).hold(examples)
    batch, columns = chunk.batch, chunk.labels.columns
    run = full_run(model, batch.clean, batch.is_token, batch.position_ids)
    logits, _ = runner(model).circuit(chunk, mask)
    end = runner(model).removal(chunk, mask, first=0).end()
    near(model.backend.unembed(end)[0], logits, atol=1e-9)
    near(model.backend.unembed(end, columns)[0], logits.gather(1, columns), atol=1e-9)
    return run.senders * batch.is_token[None, :, :, None], runner(model).full_logits(batch, run), logits


def test_runs_are_the_same(pair):
    fast, hooked = pair
    examples = random_examples(fast, 4)
    mask = fast.graph.edge_mask & (np.random.default_rng(0).random(fast.graph.edge_mask.shape) < 0.5)
    for left, right in zip(runs_of(fast, examples, mask), runs_of(hooked, examples, mask), strict=True):
        near(left, right)


def test_edges_cut_one_after_the_other_give_the_same_values(pair):
    fast, _ = pair
    examples, values = random_examples(fast, 4), []
    last = fast.graph.n_receivers - 1
    for model in pair:
        patching = Patching(model, Ablation("zero"), examples)
        removal = patching.removal(patching.hold(examples), model.graph.edge_mask, get_metric("logit_diff"), last - 1)
        tried = [*removal.try_cuts(last, [0, 3, 5]), *removal.start_values]
        removal.accept([0, 1])
        values.append([*tried, removal.value, *removal.try_cuts(last - 1, [1])])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize("capability", get_args(Capability))
def test_what_hooks_cannot_do_is_refused_in_a_sentence(pair, capability):
    fast, hooked = pair
    assert (fast.can(capability), hooked.can(capability)) == (True, False)
    require(fast, capability, "this")
    with pytest.raises(BadSetting, match=r"^this, and .* runs through hooks: it works with GPT-2, .* and Qwen 3 MoE$"):
        require(hooked, capability, "this")
    with pytest.raises(BadSetting, match=r"needs a model with fast components; .* runs by hooks"):
        _ = hooked.components
