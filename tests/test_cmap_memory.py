"""Cross-model patching keeps to its plan: where activations are kept, chunks, one model at a time, counted work."""

import weakref
from functools import partial

import numpy as np
import pytest
from cross_models import FAMILIES, GROUPS, N, model, module_of, spec_of, task_of

import circuitdisc as cd
from circuitdisc.checkpoints.cmap import job as cmap_job
from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.checkpoints.cmap.plan import plan_patching
from circuitdisc.checkpoints.cmap.sets import Wanted
from circuitdisc.engine.cross.cache import STORED, keep_activations
from circuitdisc.engine.cross.patch import HEAD_KINDS
from circuitdisc.engine.cross.plan import shapes_from_config, shapes_of, work_of
from circuitdisc.engine.cross.run import CrossRun
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric

pytestmark = pytest.mark.usefixtures("llama_in_float64")


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
    held = {tensor.untyped_storage().data_ptr() for tensors in given._tensors.values() for tensor in tensors.values()}
    assert held
    assert not held & {parameter.untyped_storage().data_ptr() for parameter in one.module.parameters()}


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(BadSetting, match="raise memory="):
        cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), memory=1000)
