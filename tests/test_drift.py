"""Drift along a ladder: each figure against a literal computation, nothing where nothing changed, and the command."""

import copy
import json

import numpy as np
import pytest
import torch
from models import model_of

import circuitdisc as cd
from circuitdisc.checkpoints.drift import drift
from circuitdisc.checkpoints.weight_change import head_weights, weight_change
from circuitdisc.cli import main
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.head_outputs import head_outputs
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.models import cut_hugging_face
from circuitdisc.tasks.base import Example

QUICK = ["task=tpp", "task.n=4", "task.n_heldout=12", "key=c1", "progress=false"]


def examples(n=6, d_vocab=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example(
            clean=tuple(rng.integers(1, d_vocab, 7 + one % 2).tolist()),
            corrupted=None,
            positions=(6 + one % 2,),
            answers=((1,),),
            wrong=((2,),),
            roles={"middle": 3},
        )
        for one in range(n)
    ]


def moved(model, layer, head, by=0.5):
    """A copy of a model with one head's W_Q and W_O changed."""
    other = cut_hugging_face(copy.deepcopy(model.module), name="moved")
    block = other.components.weights.layers[layer]  # in the module's own memory
    W_O = block.W_O[head]
    block.W_Q[head] *= 1 + by
    W_O += by * torch.randn(W_O.shape, dtype=W_O.dtype, generator=torch.Generator().manual_seed(1))
    return other


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_change_of_a_product_is_that_of_the_product_written_out(family):
    model = model_of(family)
    cut, other = components_of(model, "the test"), components_of(moved(model, 1, 1), "the test")
    found = weight_change(head_weights(other), head_weights(cut))
    shared = cut.spec.n_heads // cut.spec.n_kv_heads
    for layer, (new, old) in enumerate(zip(other.weights.layers, cut.weights.layers, strict=True)):
        scale = old.norm_attention.scale
        assert scale is not None
        for head in range(model.graph.n_heads):
            kv = head // shared

            def product(block, kind, head=head, kv=kv, scale=scale):
                if kind == "qk":
                    return (scale[:, None] * block.W_Q[head]) @ (scale[:, None] * block.W_K[kv]).T
                return (scale[:, None] * block.W_V[kv]) @ block.W_O[head]

            for kind in ("qk", "ov"):
                was, now = product(old, kind), product(new, kind)
                assert found[kind][layer, head] == pytest.approx(float((now - was).norm() / was.norm()), abs=1e-12)
    assert (found["qk"] > 1e-12).sum() == (found["ov"] > 1e-12).sum() == 1


def test_head_outputs_are_those_of_each_prompt_run_alone():
    model, some = model_of("gpt2"), examples()
    found = head_outputs(model, some, memory=400_000)  # several chunks
    at_end = head_outputs(model, some, at="end")
    assert found.values.shape[2] == sum(map(len, some))

    for place, example in enumerate(some):
        tokens = torch.tensor([example.clean])
        run = full_run(model, tokens, torch.ones_like(tokens).bool(), torch.arange(len(example))[None])
        heads = [row for row, node in enumerate(model.graph.senders) if node.kind == "head"]
        own = run.senders[heads][:, 0].unflatten(0, found.values.shape[:2])
        torch.testing.assert_close(found.values[:, :, found.example == place], own, atol=1e-12, rtol=0)
        torch.testing.assert_close(at_end.values[:, :, place], own[:, :, -1], atol=1e-12, rtol=0)


def test_head_outputs_that_do_not_fit_are_refused():
    with pytest.raises(BadSetting, match="at=end"):
        head_outputs(model_of("gpt2"), examples(), memory=1000)


def test_nothing_drifts_between_a_model_and_itself():
    model = model_of("gpt2")
    found = drift([model, model], examples(), key="middle")
    assert np.isnan(found.cosine[0]).all()
    np.testing.assert_allclose(found.cosine[1], 1, atol=1e-12)
    for values in found.weights.values():
        assert values[1].max() < 1e-12
    assert np.abs(found.change(found.attention)[1]).max() == 0
    assert np.abs(found.change(found.attribution)[1]).max() == 0
    assert found.references == (None, model.name)


def test_one_head_that_was_changed_is_the_one_that_moved():
    model = model_of("gpt2")
    found = drift([model, moved(model, 1, 1)], examples(), key="middle")
    changed = {name: np.argwhere(values[1] > 1e-9).tolist() for name, values in found.weights.items()}
    assert changed == {"qk": [[1, 1]], "ov": [[1, 1]]}
    before, after = (cd.heads.attention_to(one, examples(), key="middle") for one in (model, moved(model, 1, 1)))
    np.testing.assert_allclose(found.change(found.attention)[1], after.values - before.values, atol=1e-12)
    cosine = found.cosine[1]
    assert cosine[1, 1].max() < 1 - 1e-6
    np.testing.assert_allclose(cosine[0], 1, atol=1e-12)  # layer 0 reads the same and is the same
    top = found.table()[0]
    assert top["head"] in model.graph.heads
    assert top["change"] == pytest.approx(
        max((float(found.change(found.attribution)[1].mean(-1).ravel()[h]) for h in range(len(found.heads))), key=abs)
    )


def test_cosine_is_the_mean_over_an_examples_tokens():
    model, some = model_of("gpt2"), examples()
    other = moved(model, 0, 1)
    found = drift([model, other], some, key="middle")
    a, b = head_outputs(model, some), head_outputs(other, some)
    for example in range(len(some)):
        own = a.example == example
        expected = torch.cosine_similarity(a.values[:, :, own], b.values[:, :, own], dim=-1).mean(-1)
        np.testing.assert_allclose(found.cosine[1][..., example], expected.numpy(), atol=1e-10)


def test_against_the_previous_checkpoint():
    model = model_of("gpt2")
    other = moved(model, 1, 1)
    found = drift([model, other, other], examples(), key="middle", against="previous")
    assert found.weights["ov"][1].max() > 0.01
    assert found.weights["ov"][2].max() < 1e-12
    np.testing.assert_allclose(found.cosine[2], 1, atol=1e-12)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadModel, match="architecture"):
        drift(["tpp/base", "toys/induction"], {"name": "tpp"})
    with pytest.raises(BadSetting, match="at least 2"):
        drift(["tpp/base"], {"name": "tpp"})


def test_the_command_leaves_a_page_and_the_figures_of_python(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["drift", "checkpoints=[tpp/base,tpp/lightweight]", *QUICK, f"out={out}"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "drift.json").read_text())
    ladder = ["tpp/base", "tpp/lightweight"]
    found = drift(ladder, {"name": "tpp", "n": 4, "n_heldout": 12}, key="c1")
    assert record["attention"]["mean"] == found.to_dict()["attention"]["mean"]
    assert found.attention[1].mean() > 3 * found.attention[0].mean()  # fine-tuned heads look at c
    assert "tpp/lightweight" in printed
    page = (out / "report.html").read_text()
    assert "tpp/lightweight minus tpp/base" in page
    assert {path.name for path in out.iterdir()} == {"drift.json", "arrays.npz", "report.html"}


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["drift", *QUICK, f"out={out}"]) == 2
    assert main(["drift", "checkpoints=[tpp/base,tpp/nowhere]", *QUICK, f"out={out}"]) == 2
    assert main(["drift", "checkpoints=[tpp/base,tpp/lightweight]", "task=tpp", "key=nowhere", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert "which checkpoints?" in said
    assert "tpp/nowhere" in said
    assert "nowhere" in said
    assert not out.exists()
