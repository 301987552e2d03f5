"""Cross-model patching against a literal loop with hooks on the modules, one unpadded prompt at a time, in float64."""

import numpy as np
import pytest
from cross_models import FAMILIES, GROUPS, N, loop, mapped, model, own, recorded, spec_of, task_of
from models import hugging_face

from circuitdisc.checkpoints.attention_difference import attention_difference
from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.checkpoints.cmap.sets import Wanted
from circuitdisc.engine.cross.cache import keep_activations
from circuitdisc.engine.cross.patch import HEAD_KINDS, Patch, units_of
from circuitdisc.metrics import get_metric
from circuitdisc.metrics.logit_diff import logit_diff
from circuitdisc.models import cut_hugging_face
from circuitdisc.tasks.base import collate
from circuitdisc.tasks.roles import position_of

pytestmark = pytest.mark.usefixtures("llama_in_float64")


@pytest.mark.parametrize("positions", [None, ("s2", "end")])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_of_every_kind_equals_the_loop_with_hooks(family, positions):
    spec, found = spec_of(family), mapped(family, positions).maps[0]
    for kind in HEAD_KINDS:
        units, values = units_of(spec, kind), found.maps[kind].values.reshape(-1, N)
        assert len(units) == len(values)
        for unit, value in zip(units, values, strict=True):
            wanted = loop(family, "base", "tuned", Patch(frozenset({unit})), positions)
            assert np.allclose(value, wanted, rtol=0, atol=1e-9), (unit, value, wanted)
        assert np.abs(values - found.gap.taker).max() > 1e-4, kind


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_and_groups_equal_the_loop_with_hooks(family):
    result = mapped(family)
    spec = spec_of(family)
    wanted = Wanted(spec, True, HEAD_KINDS, {name: [(int(h[1]), int(h[4])) for h in heads] for name, heads in GROUPS.items()})
    for direction, taker, giver in (("tuned_into_base", "base", "tuned"), ("base_into_tuned", "tuned", "base")):
        found = result.direction(direction)
        assert np.allclose(found.gap.taker, own(family, taker), rtol=0, atol=1e-9)
        assert np.allclose(found.gap.giver, own(family, giver), rtol=0, atol=1e-9)
        for name, patch in wanted.pieces().items():
            if name not in ("readout", "everything", "final residual"):
                truth = np.mean(loop(family, taker, giver, patch))
                assert found.part(name).metric == pytest.approx(truth, abs=1e-9), name
        for group in found.groups:
            if group.patched.name in GROUPS:
                units = wanted.group_units(group.patched.name, group.kind)
                truth = np.mean(loop(family, taker, giver, Patch(units)))
                assert group.patched.metric == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "attention_only", "parallel", "rms_rotary_grouped"])
def test_everything_is_the_other_model_and_nothing_the_model_itself(family):
    for found in mapped(family).maps:
        giver = keep_activations(model(family, found.giver), task_of(family).heldout, [(0, N)], (), [get_metric("logit_diff")])
        taker = keep_activations(model(family, found.taker), task_of(family).heldout, [(0, N)], (), [get_metric("logit_diff")])
        truth, start = (one.metrics["logit_diff"].numpy() for one in (giver, taker))
        assert abs(truth.mean() - start.mean()) > 1e-3
        assert (found.gap.giver == truth).all()
        assert found.part("everything").metric == truth.mean()
        assert found.part("everything").score == pytest.approx(1, abs=1e-12)
        assert found.part("nothing").metric == start.mean()
        assert found.part("nothing").score == 0
        logits = cut_logits(model(family, found.giver), task_of(family).heldout)
        assert np.allclose(truth, logits, rtol=0, atol=1e-6)


def cut_logits(one, examples):
    """The metric from the model's own code."""
    batch = collate(examples)
    logits = one.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)[batch.reads]
    return batch.per_example(logit_diff(logits, batch.labels)).numpy()


def test_gemma_holds_the_norm_after_attention_and_everything_is_still_everything():
    base, tuned = (cut_hugging_face(hugging_face("gemma2", seed).double(), name=str(seed)) for seed in (0, 1))
    found = cmap(base, tuned, task_of("gpt2"), top=0, grow=False, attention=False).maps[0]
    assert found.part("everything").metric == pytest.approx(found.gap.giver.mean(), abs=1e-12)
    assert found.part("nothing").metric == found.gap.taker.mean()


def test_the_final_residual_alone_leaves_the_readout():
    found = mapped("gpt2").maps[0]
    assert abs(found.part("final residual").metric - found.gap.giver.mean()) > 1e-3
    assert abs(found.part("readout").metric - found.gap.taker.mean()) > 1e-3
    assert found.part("final residual").metric == pytest.approx(found.part("all heads and MLPs").metric, abs=10)


@pytest.mark.parametrize("name", ["kl", "log_prob"])
def test_kl_is_to_the_giver_so_that_everything_leaves_none(name):
    found = cmap(model("llama", "base"), model("llama", "tuned"), task_of("llama"), metric=name, top=0, grow=False).maps[0]
    assert found.part("everything").score == pytest.approx(1, abs=1e-12)
    if name == "kl":
        assert found.part("everything").metric == pytest.approx(0, abs=1e-12)
        assert found.gap.taker.mean() < -1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_difference_equals_the_modules_own_patterns(family):
    task = task_of(family)
    found = attention_difference(model(family, "base"), model(family, "tuned"), task, query="end", keys=["s2", "first"])
    for r, key in enumerate(found.keys):
        for index, example in enumerate(task.heldout):
            for which, values in (("base", found.base), ("tuned", found.tuned)):
                patterns = [held["pattern"] for held in recorded(family, which, index)[0]]
                at, to = position_of(example, "end"), position_of(example, key)
                wanted = [pattern[:, at, to].tolist() for pattern in patterns]
                assert np.allclose(values[r, :, :, index], wanted, rtol=0, atol=1e-9)
    assert np.abs(found.difference).max() > 1e-3
    first = found.table("s2")[0]
    assert first["difference"] == pytest.approx(first["tuned"] - first["base"])
    seen = mapped(family).attention
    assert seen is not None
    assert seen.keys == ("first", "s2")
