"""A model family is one file with a `FAMILY` and one line in the registry: this file is such a file, for StarCoder 2."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import hugging_face, model_of
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.cross.plan import shapes_from_config, shapes_of
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.selfcheck import _against_own, check_model
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.models import cut_hugging_face, families
from circuitdisc.models.families.family import Family, WeightMap
from circuitdisc.models.families.reader import read_module
from circuitdisc.tasks.base import Example

FAMILY = Family(
    {"starcoder2": "StarCoder 2"},
    WeightMap(w_in="mlp.c_fc", w_gate="", w_out="mlp.c_proj"),
    norm="layer",
)


@pytest.fixture
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, __name__))


def test_a_family_that_nobody_registered_has_no_fast_components():
    with pytest.raises(BadModel, match="no fast components for 'mpt'"):
        model_of("mpt", components="fast")
    with pytest.raises(BadSetting, match=r"\(GPT-2, GPT-NeoX, Llama, .*, Qwen 3 MoE, toys\)"):
        _ = model_of("gpt2", components="hooks").components


@pytest.mark.usefixtures("registered")
def test_a_registered_family_is_the_model_and_runs_every_circuit():
    model = model_of("starcoder2", components="fast")
    assert max(check_model(model).values()) < 1e-6  # its own code takes softmaxes in float32
    examples = random_examples(model, 5)
    patching = Patching(model, Ablation("resample"), examples)
    (chunk,) = patching.hold(examples)
    mask = model.graph.edge_mask & (np.random.default_rng(0).random(model.graph.edge_mask.shape) < 0.4)
    torch.testing.assert_close(patching.circuit_logits(chunk, mask), masked_run(model, chunk, mask), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("registered")
def test_a_registered_family_is_known_wherever_families_are():
    fast, slow = model_of("starcoder2"), model_of("gpt2", components="hooks")
    task = random_task(fast, n=4)
    found = cd.discover(fast, task, "eap_ig", edges=20, allow_chance=True)
    assert found.circuit.n_edges > 0
    with pytest.raises(BadSetting, match="Qwen 3 MoE and StarCoder 2; algorithms that only run circuits"):
        cd.discover(slow, task, "eap_ig", edges=20, allow_chance=True)
    with pytest.raises(BadSetting, match="Qwen 3 MoE, StarCoder 2, toys"):
        _ = slow.components


@pytest.mark.parametrize("kind", [kind for family in families.all_families() for kind in family.titles])
def test_what_a_family_declares_is_what_its_models_have(kind):
    module = hugging_face(kind)
    family = families.find_family(kind)
    assert family is not None
    assert read_module(module, family)[1].layers[-1].gated or not family.gated
    expected = shapes_of(model_of(kind, torch.float32))
    assert shapes_from_config(module.config.to_dict(), 4) == replace(expected, tied=module.config.tie_word_embeddings)


def test_the_reason_why_hooks_do_not_fit_is_the_familys():
    with pytest.raises(BadModel, match="Its norm after attention couples the heads: leave components=auto"):
        check_model(model_of("gemma2", components="hooks"))


def test_no_architecture_belongs_to_two_families_and_nothing_else_has_one():
    kinds = [kind for family in families.all_families() for kind in family.titles]
    assert len(set(kinds)) == len(kinds)
    for name in ("starcoder2", None, ["gpt2"], {}):
        assert families.find_family(name) is None


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [4.0] * 2, "partial_rotary_factor": 0.5}),
        ("ministral3", {"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 64}),
    ],
)
def test_prompts_end_where_an_architecture_begins_to_change(kind, rope):
    """Beyond the length that it was first trained on, it turns by other angles, or scales its queries."""
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 16, **rope}
    changes = {"original_max_position_embeddings": 16} if kind == "phi3" else {}
    module = hugging_face(kind, rope_parameters=rope, **changes).double()
    module(input_ids=torch.arange(20)[None])  # which leaves the angles of long prompts in it
    model = cut_hugging_face(module)
    assert model.n_ctx == 16
    assert max(check_model(model).values()) < 1e-6
    tokens = torch.arange(16)[None] % model.d_vocab
    longer = torch.arange(17)[None] % model.d_vocab
    own = [module(input_ids=ids).logits[0, 8] for ids in (tokens, longer)]
    if kind == "phi3":  # the same token, seen with other angles
        assert float((own[0] - own[1]).abs().max().detach()) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3", "mixtral", "granite", "olmo2"])
def test_a_window_counts_where_the_module_has_it_and_nowhere_else(kind):
    """Beyond the self-check's own prompts: a stray key of config.json is no window."""
    module = hugging_face(kind, sliding_window=8).double().requires_grad_(False)
    model = cut_hugging_face(module)
    assert (model.components.spec.window is not None) == (kind in ("mistral", "phi3", "mixtral"))
    long = Example(tuple(range(20)), None, tuple(range(20)), ((0,),) * 20, ((),) * 20)
    assert _against_own(model, [long]) < 1e-6
