"""Cross-model patching against a literal loop with hooks on the modules, one unpadded prompt at a time, in float64."""

import copy
import json
import weakref
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from examples import random_examples
from models import TOYS, hugging_face, model_of, toy
from scipy import stats
from transformers.models.llama import modeling_llama

import circuitdisc as cd
from circuitdisc.checkpoints.attention_difference import attention_difference
from circuitdisc.checkpoints.cmap import job as cmap_job
from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.checkpoints.cmap.plan import plan_patching
from circuitdisc.checkpoints.cmap.sets import Wanted
from circuitdisc.circuit import Circuit
from circuitdisc.engine.cross.cache import STORED, keep_activations
from circuitdisc.engine.cross.patch import HEAD_KINDS, Patch, units_of
from circuitdisc.engine.cross.plan import shapes_from_config, shapes_of, work_of
from circuitdisc.engine.cross.run import CrossRun
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadModel, BadRun, BadSetting, GraphMismatch, UnknownName
from circuitdisc.jobs.cmap import cmap_command
from circuitdisc.metrics import get_metric
from circuitdisc.metrics.logit_diff import logit_diff
from circuitdisc.models import cut_hugging_face, cut_toy
from circuitdisc.tasks.base import Task, collate
from circuitdisc.tasks.roles import position_of

FAMILIES = ("gpt2", "llama")
GROUPS = {"A": ("a1.h0", "a1.h3"), "B": ("a0.h2", "a1.h1")}
N = 4  # examples that judge


@pytest.fixture(scope="module", autouse=True)
def _llama_in_float64():
    """Llama's own code takes norms and softmaxes in float32; here it is held to float64, as the cut model is."""

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def attention(module, query, key, value, attention_mask, scaling, **_):
        key, value = (modeling_llama.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        pattern = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
        patch.setattr(modeling_llama, "eager_attention_forward", attention)
        yield


@cache
def module_of(family, which):
    """The module; `tuned` is a copy with other weights nearby."""
    module = hugging_face(family).double()
    if which == "tuned":
        module = copy.deepcopy(module)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


@cache
def model(family, which):
    if family not in TOYS:
        return cut_hugging_face(module_of(family, which), name=which)
    return cut_toy(toy(family, seed=int(which == "tuned")).double(), name=which)


def spec_of(family):
    return components_of(model(family, "base"), "the test").spec


@cache
def task_of(family):
    """Random prompts of unequal length with the role `s2` at different places."""
    drawn = random_examples(model(family, "base"), 2 * N)
    examples = tuple(replace(one, roles={"s2": 1 + index % 3}) for index, one in enumerate(drawn))
    return Task("random", examples[:N], examples[N:])


@cache
def mapped(family, positions=None):
    """Everything that cmap has, of both directions."""
    return cmap(
        model(family, "base"), model(family, "tuned"), task_of(family), what=HEAD_KINDS, groups=GROUPS, direction="both",
        positions=positions, n_random=3, top=3, steps=[0, 2, 5],
    )  # fmt: skip


# --- the truth: the modules, with hooks ----------------------------------------------------------------------------------


def parts_of(module, family, layer):
    """The block, its projections (as slices of outputs of submodules), its output projection and its MLP."""
    if family == "gpt2":
        block, D = module.transformer.h[layer], module.config.n_embd
        reads = {kind: (block.attn.c_attn, at * D) for at, kind in enumerate(("query", "key", "value"))}
        return block, reads, block.attn.c_proj, block.mlp
    block = module.model.layers[layer]
    names = {"query": block.self_attn.q_proj, "key": block.self_attn.k_proj, "value": block.self_attn.v_proj}
    return block, {kind: (one, 0) for kind, one in names.items()}, block.self_attn.o_proj, block.mlp


def sizes(module):
    heads = module.config.num_attention_heads
    return heads, module.config.hidden_size // heads, heads // getattr(module.config, "num_key_value_heads", heads)


def weight_and_bias(out):
    """W_O as [H K, D], and its bias."""
    weight = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
    return weight, 0.0 if out.bias is None else out.bias


def with_hooks(module, example, hooks):
    handles = [getattr(one, register)(hook) for one, register, hook in hooks]
    with torch.no_grad():
        found = module(torch.tensor([example.clean]), output_attentions=True)
    for handle in handles:
        handle.remove()
    return found.logits[0], [pattern[0] for pattern in found.attentions]


@cache
def recorded(family, which, index):
    """A module's activations on one example, layer by layer, and its logits."""
    module, example = module_of(family, which), task_of(family).heldout[index]
    layers, hooks = [], []
    for layer in range(module.config.num_hidden_layers):
        held = {}
        layers.append(held)
        block, reads, out, mlp = parts_of(module, family, layer)
        hooks.append((block, "register_forward_pre_hook", lambda _, args, held=held: held.update(residual=args[0][0])))
        hooks.append((mlp, "register_forward_hook", lambda _, args, y, held=held: held.update(mlp=y[0])))
        hooks.append((out, "register_forward_pre_hook", lambda _, args, held=held: held.update(z=args[0][0])))
        for kind, (one, start) in reads.items():

            def keep(_, args, y, held=held, kind=kind, start=start):
                stop = start + module.config.hidden_size if family == "gpt2" else y.shape[-1]
                held[kind] = y[0, :, start:stop].clone()

            hooks.append((one, "register_forward_hook", keep))
    logits, patterns = with_hooks(module, example, hooks)
    for held, pattern in zip(layers, patterns, strict=True):
        held["pattern"] = pattern
    return layers, logits[list(example.positions)]


def by_hooks(family, taker, giver, index, patch, positions=None):
    """Metric of one example when a patch is made by hooks."""
    module, other = module_of(family, taker), module_of(family, giver)
    example, given = task_of(family).heldout[index], recorded(family, giver, index)[0]
    at = list(range(len(example))) if positions is None else sorted({position_of(example, one) for one in positions})
    _, width, shared = sizes(module)
    hooks = []
    for layer in range(module.config.num_hidden_layers):
        block, reads, out, mlp = parts_of(module, family, layer)
        held, live = given[layer], {}
        if layer in patch.residual:

            def residual(_, args, held=held):
                x = args[0].clone()
                x[0, at] = held["residual"][at]
                return (x, *args[1:])

            hooks.append((block, "register_forward_pre_hook", residual))
        for kind, (one, start) in reads.items():

            def read(_, args, y, kind=kind, start=start, held=held, live=live, layer=layer):
                y = y.clone()
                for number in patch.numbers(kind, layer):
                    columns = slice(start + number * width, start + (number + 1) * width)
                    y[0, at, columns] = held[kind][at, number * width : (number + 1) * width]
                live[kind] = y[0, :, start:]
                return y

            hooks.append((one, "register_forward_hook", read))

        def weighted(_, args, held=held, live=live, layer=layer):
            z = args[0].clone()
            for head in patch.numbers("pattern", layer):
                values = live["value"][:, head // shared * width :][:, :width]
                z[0, at, head * width : (head + 1) * width] = held["pattern"][head, at] @ values
            live["z"] = z[0]
            return (z,)

        def written(_, args, y, held=held, live=live, layer=layer, out=out):
            y = y.clone()
            mine, my_bias = weight_and_bias(out)
            theirs, their_bias = weight_and_bias(parts_of(other, family, layer)[2])
            for head in patch.numbers("output", layer):
                rows = slice(head * width, (head + 1) * width)
                y[0, at] += held["z"][at, rows] @ theirs[rows] - live["z"][at, rows] @ mine[rows]
            if patch.biases:
                y[0, at] += their_bias - my_bias
            return y

        hooks += [(out, "register_forward_pre_hook", weighted), (out, "register_forward_hook", written)]
        if layer in patch.mlps:

            def replaced(_, args, y, held=held):
                y = y.clone()
                y[0, at] = held["mlp"][at]
                return y

            hooks.append((mlp, "register_forward_hook", replaced))
    return metric_of(example, with_hooks(module, example, hooks)[0][list(example.positions)])


def metric_of(example, logits):
    return float(logit_diff(logits, collate([example]).labels).mean())


def loop(family, taker, giver, patch, positions=None):
    return [by_hooks(family, taker, giver, index, patch, positions) for index in range(N)]


def own(family, which):
    task = task_of(family)
    return [metric_of(task.heldout[index], recorded(family, which, index)[1]) for index in range(N)]


# --- per-head maps, pieces, groups -----------------------------------------------------------------------------------------


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


# --- grouped queries, scores, several at once -------------------------------------------------------------------------------


def test_heads_that_share_a_value_are_patched_together_and_shown_so():
    found = mapped("llama").maps[0].maps
    assert found["value"].names[:3] == ("a0.h0-1", "a0.h2-3", "a1.h0-1")
    assert found["value"].heads[1] == ("a0.h2", "a0.h3")
    assert found["value"].values.shape == (2, 2, N)
    assert found["output"].names[1] == "a0.h1"
    assert (found["value"].by_head[:, 0] == found["value"].by_head[:, 1]).all()
    rows = mapped("llama").table()
    assert len(rows) == 8
    assert all(row["value with"].startswith(row["head"][:4]) and "-" in row["value with"] for row in rows)
    group = next(one for one in mapped("llama").maps[0].groups if one.kind == "value" and one.patched.name == "A")
    assert (len(group.heads), group.n_units) == (2, 2)


def test_scores_are_ratios_of_means_with_paired_intervals():
    found = mapped("gpt2").maps[0]
    unit, gap = found.maps["output"], found.gap
    wanted = (unit.values.mean(-1) - gap.taker.mean()) / (gap.giver.mean() - gap.taker.mean())
    assert np.allclose(unit.score, wanted)
    assert ((unit.low <= unit.score + 1e-12) & (unit.score <= unit.high + 1e-12)).all()
    closed, whole, score = unit.values[1, 2] - gap.taker, gap.giver - gap.taker, unit.score[1, 2]
    reach = stats.t.ppf(0.975, N - 1) * np.std((closed - score * whole) / whole.mean(), ddof=1) / N**0.5
    assert np.allclose((unit.low[1, 2], unit.high[1, 2]), (score - reach, score + reach))
    assert gap.method.startswith(f"Student's t over {N} examples")


def test_two_models_that_score_the_same_have_no_score_and_it_is_said():
    found = cmap(model("gpt2", "base"), model("gpt2", "base"), task_of("gpt2"), top=2, n_random=1)
    assert "no gap" in found.maps[0].gap.undefined
    data = json.loads(json.dumps(found.to_dict()))
    assert data["directions"][0]["maps"]["output"]["score"][0][0] is None
    assert data["directions"][0]["maps"]["output"]["metric"][0][0] is not None


def test_pairs_groups_and_the_growing_set():
    result = mapped("gpt2").maps[0]
    growth, names = result.growth, result.maps["output"].names
    assert growth is not None
    assert growth.sizes == (0, 2, 5)
    assert sorted(growth.order) == sorted(names)
    assert growth.score[0] == 0
    assert growth.random.shape == (3, 3)
    best = {tuple(pair.name.split(" and ")): pair.score for pair, _ in result.pairs}
    assert len(best) == 3
    assert best[growth.order[0], growth.order[1]] == pytest.approx(growth.score[1], abs=1e-12)
    both = next(one for one in result.groups if one.patched.name == "all groups" and one.kind == "output")
    assert set(both.heads) == {"a1.h0", "a1.h3", "a0.h2", "a1.h1"}
    assert len(both.random) == 3
    whole = cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), what="output", steps=[12], n_random=2, top=0)
    grown = whole.maps[0].growth
    assert grown is not None
    assert grown.score[0] == pytest.approx(whole.maps[0].part("all heads").score, abs=1e-12)
    assert np.allclose(grown.random, grown.score)


def test_random_sets_have_as_many_units_of_each_layer():
    places = [(0, 1), (2, 0), (2, 3)]
    wanted = Wanted(spec_of("gpt2"), True, ("output",), {"A": places}, n_random=10)
    drawn = [patch.heads for label, patch in wanted.patches([]).items() if label[0] == "random"]
    assert len(set(drawn)) == 10
    assert frozenset(("output", *place) for place in places) not in drawn
    assert all(sorted(layer for _, layer, _ in heads) == [0, 2, 2] for heads in drawn)


def test_a_circuit_gives_its_groups_or_its_heads():
    graph = model("gpt2", "base").graph
    circuit = Circuit.from_heads(graph, ["a0.h1", "a1.h2"])
    call = partial(cmap, model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), top=0, grow=False, n_random=1)
    assert {group.patched.name for group in call(groups=circuit).maps[0].groups} == {"circuit"}
    grouped = replace(circuit, groups={"A": ("a0.h1",), "B": ("a1.h2",)})
    assert {group.patched.name for group in call(groups=grouped).maps[0].groups} == {"A", "B", "all groups"}


# --- where activations are kept, chunks, memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_disk_and_small_chunks_change_nothing(family, tmp_path):
    call = partial(cmap, model(family, "base"), model(family, "tuned"), task_of(family), what=HEAD_KINDS, groups=GROUPS, top=2)
    call = partial(call, steps=[3], n_random=1)
    whole = call()
    on_disk = call(cache="disk", cache_folder=tmp_path / "made")
    in_parts = call(memory=200_000, cache="memory")
    assert (whole.plan["store"], on_disk.plan["store"]) == ("memory", "disk")
    assert in_parts.plan["chunks"] > whole.plan["chunks"]
    assert list((tmp_path / "made").iterdir()) == []
    for other, tolerance in ((on_disk, 0.0), (in_parts, 1e-12)):
        for kind in HEAD_KINDS:
            mine, theirs = whole.maps[0].maps[kind].values, other.maps[0].maps[kind].values
            assert np.abs(mine - theirs).max() <= tolerance, kind
        assert [part.name for part in whole.maps[0].parts] == [part.name for part in other.maps[0].parts]
        assert np.allclose([part.metric for part in whole.maps[0].parts], [part.metric for part in other.maps[0].parts])


def test_one_model_is_in_memory_at_a_time(monkeypatch):
    alive, load = [], cmap_job.load

    def watched(name, **settings):
        assert not [one for one in alive if one() is not None], "the other model is still held"
        loaded = load(name, **settings)
        alive.append(weakref.ref(loaded.module))
        return loaded

    monkeypatch.setattr(cmap_job, "load", watched)
    made = partial(cd.load_task, "tpp", n=4, n_heldout=6)
    call = partial(cmap, "tpp/base", "tpp/lightweight", direction="both", what="output", parts=False)
    found = call(lambda one: made(one), top=0, grow=False, attention=False)
    assert len(alive) == 4
    assert found.base == "tpp/base"
    assert [one.giver for one in found.maps] == ["tpp/lightweight", "tpp/base"]


@pytest.mark.parametrize("positions", [None, ("end",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_the_runs_do(family, positions):
    one, examples = model(family, "base"), task_of(family).heldout
    shapes = shapes_of(one)
    assert shapes == shapes_from_config(module_of(family, "base").config.to_dict(), 8)
    wanted = Wanted(spec_of(family), True, HEAD_KINDS, {"A": [(0, 1), (1, 2)]}, top=3, sizes=(0, 3, 7), n_random=4)
    patches = list(wanted.patches(list(range(8))).values())
    given = keep_activations(model(family, "tuned"), examples, [(0, 2), (2, N)], STORED, [], positions=positions)
    run = CrossRun(one, given, positions)
    run.values(examples, patches, [get_metric("logit_diff")])
    counted = work_of(shapes, patches, positions is None)
    for name in ("reads", "writes", "mlps"):
        assert getattr(run.work, name) == pytest.approx(getattr(counted, name), rel=1e-12), name
    plan = plan_patching(shapes, [len(example) for example in examples], wanted, 2**30, n_positions=positions and 1)
    rest = {kind: size for kind, size in plan.cache.items() if kind != "pattern"}  # its rows are as long as a chunk's prompts
    kept = keep_activations(model(family, "tuned"), examples, [(0, N)], tuple(rest), [], positions=positions)
    assert sum(rest.values()) + plan.given_weights == pytest.approx(kept.n_bytes, rel=0.05)


def test_what_is_kept_shares_no_memory_with_the_model():
    one = model("llama", "tuned")
    given = keep_activations(one, task_of("llama").heldout, [(0, N)], STORED, [])
    held = {tensor.untyped_storage().data_ptr() for tensors in given._held.values() for tensor in tensors.values()}
    assert held
    assert not held & {parameter.untyped_storage().data_ptr() for parameter in one.module.parameters()}


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(BadSetting, match="raise memory="):
        cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), memory=1000)


# --- attention ----------------------------------------------------------------------------------------------------------------


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


def test_a_key_behind_the_query_is_refused():
    with pytest.raises(BadSetting, match="lies behind"):
        attention_difference(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), query="first", keys="s2")


# --- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"what": "outputs"}, UnknownName, "Did you mean output"),
        ({"what": []}, BadSetting, "names nothing"),
        ({"direction": "tuned"}, UnknownName, "tuned_into_base"),
        ({"positions": "s3"}, UnknownName, "s2"),
        ({"groups": {"A": ["a9.h1"]}}, GraphMismatch, "not a head of this graph"),
        ({"groups": {"A": []}}, BadSetting, "no heads"),
        ({"split": "test"}, UnknownName, "heldout"),
        ({"top": -1}, BadSetting, "top"),
        ({"steps": [99]}, BadSetting, "99"),
        ({"cache": "tape"}, UnknownName, "disk"),
    ],
)
def test_bad_settings_get_a_sentence(settings, error, words):
    with pytest.raises(error, match=words):
        cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), **settings)


def test_models_that_do_not_fit_are_refused_before_anything_runs():
    with pytest.raises(BadModel, match="share one architecture"):
        cmap(model("gpt2", "base"), model("llama", "base"), task_of("gpt2"))
    hooked = model_of("gpt2", components="hooks")
    with pytest.raises(BadSetting, match="fast components"):
        cmap(hooked, hooked, task_of("gpt2"))


# --- the command ------------------------------------------------------------------------------------------------------------


def settings_of(tmp_path, *more):
    return [
        "base=tpp/base", "tuned=tpp/lightweight", "task=tpp", "task.n=4", "task.n_heldout=6", "n_random=1", "steps=2", "top=2",
        "progress=false", f"out={tmp_path / 'out'}", *more,
    ]  # fmt: skip


def test_the_command_leaves_a_page_and_the_numbers(tmp_path):
    path = tmp_path / "circuit.json"
    graph = cd.load_model("tpp/base").graph
    replace(Circuit.from_heads(graph, ["a3.h1", "a2.h0"]), groups={"A": ("a3.h1",), "<b>": ("a2.h0",)}).save(path)
    text = cmap_command(settings_of(tmp_path, f"circuit={path}", "what=output,value", "direction=both"))
    assert "gap of" in text
    assert "all groups" in text
    page = (tmp_path / "out" / "cmap.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    data = json.loads((tmp_path / "out" / "cmap.json").read_text())
    assert [one["direction"] for one in data["result"]["directions"]] == ["tuned_into_base", "base_into_tuned"]
    assert data["result"]["n"] == 6
    with np.load(tmp_path / "out" / "arrays.npz") as arrays:
        metric = arrays["tuned_into_base_output"].mean(-1)
    assert np.allclose(metric, data["result"]["directions"][0]["maps"]["output"]["metric"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["circuit.json", "out"]


def test_the_command_s_plan_reads_no_weights_and_foresees_the_run(tmp_path, monkeypatch):
    cmap_command(settings_of(tmp_path, "groups={A: [a3.h1]}"))
    ran = json.loads((tmp_path / "out" / "cmap.json").read_text())["result"]
    monkeypatch.setattr("circuitdisc.models.load.load_pretrained", None)
    text = cmap_command(settings_of(tmp_path, "groups={A: [a3.h1]}", "plan=true"))
    plan = json.loads(text.splitlines()[-1])
    assert plan == ran["plan"]
    assert ran["cost"]["forwards"] == pytest.approx(plan["total_passes"], rel=0.05)
    assert "memory: peak" in text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (["model=tpp/base"], BadSetting, "two checkpoints"),
        (["base=null"], BadSetting, "which base"),
        (["base=tpp/bas"], UnknownName, "tpp/base"),
        (["circuit=nowhere"], BadRun, "neither"),
        (["circuit=x", "groups={A: [a0.h1]}"], BadSetting, "one of them"),
        (["groups=[a0.h1]"], BadSetting, "table of lists"),
        (["whatt=output"], UnknownName, "Did you mean what"),
        (["tuned=multitask/base"], BadModel, "one architecture"),
    ],
)
def test_the_command_refuses_bad_input_and_leaves_nothing(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        cmap_command(settings_of(tmp_path, *change))
    assert list(tmp_path.iterdir()) == []
