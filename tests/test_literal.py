"""Every architecture against Hugging Face's own module: logits, and effects of single edges by a literal forward with hooks."""

from dataclasses import replace

import pytest
from examples import random_examples
from literal import compared, ungrouped
from models import hugging_face

from circuitdisc.engine.selfcheck import check_model, is_the_module, verify
from circuitdisc.errors import BadModel
from circuitdisc.models import cut_hugging_face
from circuitdisc.models.components import Components
from circuitdisc.models.families import all_families
from circuitdisc.tasks.base import Example

DECLARED = [*(kind for family in all_families() for kind in family.titles), "falcon_alibi", "falcon_groups"]
GUESSED = ["arcee", "exaone4", "glm4", "nemotron", "olmoe", "stablelm", "starcoder2"]


@pytest.mark.parametrize("kind", [*DECLARED, *(kind for kind in GUESSED if kind != "stablelm")])  # whose keys do not come apart
def test_single_edges_are_those_of_a_literal_forward(kind):
    found = compared(ungrouped(hugging_face(kind).double()), n_edges=8)
    assert found["full"] < 1e-6  # many families compute norms and softmaxes in float32 whatever the dtype
    assert found["edges"] < 1e-6
    assert found["effect"] > 1e-3


@pytest.mark.parametrize("kind", GUESSED)
def test_an_undeclared_architecture_is_read_by_its_usual_shape(kind):
    module = hugging_face(kind)
    model = cut_hugging_face(module, accepts=is_the_module)
    assert model.guessed
    assert model.can("partial runs")
    assert max(check_model(model).values()) < 1e-4


@pytest.mark.parametrize("kind", ["apertus", "mpt", "olmo"])
def test_what_cannot_be_guessed_runs_by_hooks(kind):
    model = cut_hugging_face(hugging_face(kind), accepts=is_the_module)
    assert not model.guessed
    assert not model.can("partial runs")
    check_model(model)


@pytest.mark.parametrize("kind", ["deepseek_v3", "mamba", "diffllama"])
def test_what_has_no_heads_of_its_own_is_refused(kind):
    with pytest.raises(BadModel, match="cannot be cut at heads and inputs"):
        cut_hugging_face(hugging_face(kind), accepts=is_the_module)


def test_a_guess_is_compared_on_the_longest_prompts_of_a_call():
    """What shows in long prompts alone, a window that nothing names, is seen before a number is given."""
    model = cut_hugging_face(hugging_face("starcoder2"), accepts=is_the_module)
    verify(model, random_examples(model, 3))
    components = model.components
    narrow = replace(components.spec, window=(8, 8))  # longer than the self-check's own prompts
    wrong = replace(model, backend=Components(narrow, components.weights))
    verify(wrong)
    short, long = random_examples(model, 1), Example(tuple(range(20)), None, (19,), ((0,),), ((),))
    with pytest.raises(BadModel, match="the computation graph is not the model"):
        verify(wrong, [*short * 6, long])
