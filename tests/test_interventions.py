"""Changed heads against hooks on the Hugging Face modules themselves, one unpadded prompt at a time, in float64."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from examples import examples_with_role, random_examples
from models import hugging_face, model_of, shared
from scipy import stats

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.engine.interventions import Intervention, evaluate_interventions, intervened_logits
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import get_metric
from circuitdisc.scoring.intervene import effects, intervene, random_heads
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.roles import position_of

# the largest difference allowed: Llama's own code takes norms, angles and softmax in float32
TOLERANCE = {"gpt2": 1e-12, "llama": 1e-6}
CASES = {
    "zero": [Intervention("a0.h2", scale=0.0)],
    "scale": [Intervention("a1.h1", scale=-1.5), Intervention("a1.h3", scale=2.0)],
    "attend": [Intervention("a1.h0", attend=("end", "s2"))],
    "share": [Intervention("a0.h3", attend=("s2+1", 0), share=0.3), Intervention("a0.h3", attend=("end", "s2"), share=0.8)],
    "all": [
        Intervention("a0.h1", attend=("end", "first"), scale=3.0),
        Intervention("a1.h2", attend=(-1, "s2"), share=0.5),
        Intervention("a1.h2", scale=0.0),
        Intervention("a1.h3", scale=0.5),
    ],
}


@cache
def examples_of(family):
    return examples_with_role(shared(family), 7)


def task_of(family, n=4):
    examples = examples_of(family)
    return Task("random", examples[:n], examples[n:])


# --- the truth: the module itself, with hooks ----------------------------------------------------------------------------


@cache
def module_of(family):
    """The module, its attention computed eagerly."""
    return hugging_face(family).double()


def attention_of(module, family, layer):
    """The projections that make the values and read the weighted ones, and query heads to one value head."""
    if family == "gpt2":
        attention = module.transformer.h[layer].attn
        return attention.c_attn, attention.c_proj, 1
    attention = module.model.layers[layer].self_attn
    return attention.v_proj, attention.o_proj, module.config.num_attention_heads // module.config.num_key_value_heads


def hooked_logits(family, example, interventions):
    """Logits at an example's readings, heads changed where their values, weighted by attention, enter the output projection."""
    module, handles = module_of(family), []
    n_heads = module.config.num_attention_heads
    width = module.config.hidden_size // n_heads
    for layer in range(module.config.num_hidden_layers):
        here = [(int(one.head.split("h")[1]), one) for one in interventions if one.head.startswith(f"a{layer}.")]
        values, out, group = attention_of(module, family, layer)
        seen = {}

        def keep_values(_, __, output, seen=seen, group=group):
            seen["v"] = output[0, :, -n_heads // group * width :]

        def change(_, args, here=here, seen=seen, group=group):
            z = args[0].clone()
            for head, one in here:  # all attention first: a scale is of what the head then writes
                if one.attend is not None:
                    query, key = (position_of(example, at) for at in one.attend)
                    row, value = z[0, query, head * width :][:width], seen["v"][key, head // group * width :][:width]
                    row.copy_((1 - one.share) * row + one.share * value)
            for head, one in here:
                if one.scale is not None:
                    z[0, :, head * width : (head + 1) * width] *= one.scale
            return (z,)

        handles += [values.register_forward_hook(keep_values), out.register_forward_pre_hook(change)]
    with torch.no_grad():
        logits = module(torch.tensor([example.clean])).logits[0]
    for handle in handles:
        handle.remove()
    return logits[list(example.positions)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", TOLERANCE)
def test_changed_heads_equal_hooks_on_the_module(family, case, side):
    model, examples = shared(family), examples_of(family)
    (chunk,) = Patching(model, cd.Ablation("zero"), (), padding_side=side).hold(examples)
    found = intervened_logits(model, chunk, CASES[case])
    wanted = torch.cat([hooked_logits(family, example, CASES[case]) for example in examples])
    assert float((found - wanted).abs().max()) < TOLERANCE[family]
    unchanged = torch.cat([hooked_logits(family, example, []) for example in examples])
    assert float((found - unchanged).abs().max()) > 1e-3


# --- what must hold by itself --------------------------------------------------------------------------------------------

EVERY_KIND = [
    "gpt2",
    "llama",
    "gpt_neox",
    "gemma2",
    "olmo2",
    "bloom",
    "cohere",
    "attention_only",
    "parallel",
    "rms_rotary_grouped",
]


@pytest.mark.parametrize("family", EVERY_KIND)
def test_zero_is_zero_ablation_and_one_is_nothing(family):
    model = shared(family)
    examples, heads = examples_of(family), ["a0.h1", "a1.h0", "a1.h3"]
    names = [node.name for node in model.graph.senders if node.kind == "head"]
    sets = {
        "none": (),
        "one": [Intervention(head, scale=1.0) for head in names],
        "zero": [Intervention(head, scale=0.0) for head in heads],
    }
    masks = {
        "none": model.graph.edge_mask,
        "zero": Circuit.from_heads(model.graph, [name for name in names if name not in heads]).mask,
    }
    metrics = [get_metric("logit_diff"), get_metric("kl")]
    found = evaluate_interventions(model, examples, sets, metrics)
    wanted = Patching(model, cd.Ablation("zero"), ()).evaluate(examples, masks, metrics)
    for metric in ("logit_diff", "kl"):
        for name in ("none", "zero"):
            assert torch.allclose(found[name][metric], wanted[name][metric], atol=1e-9), (name, metric)
        assert torch.allclose(found["one"][metric], found["none"][metric], atol=1e-9)


def test_a_bidirectional_head_may_look_ahead():
    model = shared("bidirectional")
    forward = [Intervention("a0.h0", attend=("first", "end"))]
    found = evaluate_interventions(model, examples_of("bidirectional"), {"": forward}, [get_metric("logit_diff")])
    assert torch.isfinite(found[""]["logit_diff"]).all()


def test_small_chunks_change_nothing():
    model, examples = shared("gpt2"), examples_of("gpt2")
    sets, metrics = {"all": CASES["all"]}, [get_metric("accuracy"), get_metric("log_prob")]
    whole = evaluate_interventions(model, examples, sets, metrics)
    seen = []
    parts = evaluate_interventions(model, examples, sets, metrics, memory=300_000, on_progress=seen.append)
    assert len(seen) > 2
    assert sum(seen) == len(examples)
    for metric in metrics:
        assert torch.allclose(whole["all"][metric.name], parts["all"][metric.name], atol=1e-10)


# --- the effect on a task ------------------------------------------------------------------------------------------------


def mean_metric(model, examples, interventions):
    """Mean logit difference from the hooked modules, reading by reading."""
    values = []
    for example in examples:
        logits = hooked_logits("gpt2", example, interventions)
        readings = [
            float(row[list(right)].mean() - row[list(wrong)].mean())
            for row, right, wrong in zip(logits, example.answers, example.wrong, strict=True)
        ]
        values.append(np.mean(readings))
    return np.array(values)


def test_an_effect_says_before_and_after():
    model, task = shared("gpt2"), task_of("gpt2", n=3)
    found = cd.intervene(model, task, CASES["all"], n_random=3, seed=1)
    before, after = (mean_metric(model, task.heldout, done) for done in ([], CASES["all"]))
    assert (found.metric, found.split, found.n) == ("logit_diff", "heldout", 4)
    assert (found.before, found.after) == pytest.approx((before.mean(), after.mean()))
    assert found.difference == pytest.approx((after - before).mean())
    assert found.low is not None
    assert found.high is not None
    apart = after - before  # the interval is that of paired examples: of four, Student's t
    ends = stats.t.interval(0.95, 3, apart.mean(), apart.std(ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx(ends)
    drawn = random_heads(model.graph, CASES["all"], 3, np.random.default_rng(1))
    wanted = [(mean_metric(model, task.heldout, done) - before).mean() for done in drawn]
    assert found.controls == pytest.approx(wanted)
    as_far = sum(abs(control) >= abs(found.difference) for control in found.controls)
    assert found.p_value == (1 + as_far) / 4
    written = found.to_dict()
    assert written["difference"] == found.difference
    assert written["interventions"][0] == {"head": "a0.h1", "scale": 3.0, "attend": ("end", "first"), "share": 1.0}


def test_several_metrics_of_the_same_runs():
    model, task = shared("gpt2"), task_of("gpt2")
    both = effects(model, task, CASES["scale"], metrics=["log_prob", "accuracy", "log_prob"], split="train", n_random=0)
    assert [one.metric for one in both] == ["log_prob", "accuracy"]
    assert both[0] == intervene(model, task, CASES["scale"], metric="log_prob", split="train", n_random=0)
    assert (both[0].controls, both[0].p_value, both[0].n) == ((), None, 4)


def test_random_heads_are_of_the_same_layers():
    graph = shared("gpt2").graph
    done = CASES["all"]
    drawn = random_heads(graph, done, 30, np.random.default_rng(0))
    assert len(drawn) == len({frozenset(one) for one in drawn}) == 30
    for changed in drawn:
        assert [replace(one, head="") for one in changed] == [replace(one, head="") for one in done]
        assert [one.head[:2] for one in changed] == [one.head[:2] for one in done]
        assert changed[1].head == changed[2].head != changed[3].head  # what was one head is one head, others are others
        assert set(changed) != set(done)
    few = random_heads(graph, [Intervention("a0.h2", scale=0.0)], 20, np.random.default_rng(0))
    assert {one.head for (one,) in few} == {"a0.h0", "a0.h1", "a0.h3"}
    everything = [Intervention(f"a0.h{head}", scale=0.0) for head in range(4)]
    assert random_heads(graph, everything, 5, np.random.default_rng(0)) == []


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "changes nothing: give scale="),
        ({"scale": float("nan")}, "give a finite number"),
        ({"attend": "end"}, "give two positions"),
        ({"attend": ("end",)}, "give two positions"),
        ({"attend": ("end", "s2"), "share": 0.0}, "above 0 and at most 1"),
    ],
)
def test_interventions_that_say_nothing(settings, sentence):
    with pytest.raises(BadSetting, match=sentence):
        Intervention("a0.h0", **settings)


@pytest.mark.parametrize(
    ("interventions", "settings", "error", "sentence"),
    [
        ([], {}, BadSetting, "no head is to be changed"),
        ([Intervention("a0.h9", scale=0.0)], {}, UnknownName, r"unknown head 'a0\.h9'.*3 layers x 4 heads"),
        ([Intervention("m0", scale=0.0)], {}, UnknownName, "unknown head 'm0'"),
        ([Intervention("a0.h0", attend=("end", "s3"))], {}, UnknownName, "unknown position 's3'. Did you mean s2"),
        ([Intervention("a0.h0", attend=("first", "end"))], {}, BadSetting, r"cannot attend from 'first' \(token 0\) to 'end'"),
        ([Intervention("a0.h0", scale=0.0)], {"split": "test"}, BadSetting, "split='test' has no examples"),
        ([Intervention("a0.h0", scale=0.0)], {"n_random": -1}, BadSetting, "n_random=-1"),
        ([Intervention("a0.h0", scale=0.0)], {"metric": "logit_dif"}, UnknownName, "Did you mean logit_diff"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(interventions, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        intervene(shared("gpt2"), task_of("gpt2"), interventions, **settings)


def test_a_window_is_kept():
    model = shared("mistral")  # its heads see four tokens
    examples = tuple(one for one in examples_of("mistral") if len(one) > 5)
    with pytest.raises(BadSetting, match=r"cannot attend from 'end'.*to 'first'.*within its window"):
        intervene(model, Task("random", examples, examples), [Intervention("a0.h0", attend=("end", "first"))])
    found = intervene(model, Task("random", examples, examples), [Intervention("a0.h0", attend=("end", "end-2"))])
    assert found.difference != 0


def test_models_that_run_by_hooks_are_refused():
    model = model_of("gpt2", components="hooks")
    task = Task("random", tuple(random_examples(model, 2)), tuple(random_examples(model, 2)))
    with pytest.raises(BadSetting, match="changing a head needs a model with fast components; gpt2"):
        intervene(model, task, [Intervention("a0.h0", scale=0.0)])
