"""Edits of heads against hooks on the Hugging Face module, what training does to them, and what the command leaves."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from changed import changed
from examples import random_examples, unchecked
from models import hugging_face, model_of, shared

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.engine.changed_heads import changed_logits, hold
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadRun, BadSetting, BadTask, GraphMismatch, UnknownName
from circuitdisc.heads.localised.fit import EditFit, Learner, Splits, head_norms, task_vectors
from circuitdisc.heads.localised.head_edits import HeadEdit, evaluate_edit
from circuitdisc.heads.localised.localised import localised
from circuitdisc.metrics import get_metric
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.encode import special_prefix
from circuitdisc.tasks.framing import behind_solved

HEADS = ("a0.h1", "a1.h2", "a1.h0", "a2.h3")
K = 8


def rows(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(len(HEADS), K)))


EDITS = {
    "offset": HeadEdit("offset", HEADS, rows()),
    "scale": HeadEdit("scale", HEADS, rows(1)),
    "inject": HeadEdit("inject", HEADS, rows(2), torch.tensor([0.0, 0.3, 1.0, 0.7], dtype=torch.float64)),
    "more": HeadEdit("first_token", HEADS, factor=3.0),
    "none": HeadEdit("first_token", HEADS, factor=0.0),
}


@cache
def examples_of(family):
    return tuple(random_examples(shared(family), 7))


def task_of(family, n=4):
    return Task("random", examples_of(family)[:n], examples_of(family)[n:])


# --- the truth: hooks on the module, one prompt at a time ----------------------------------------------------------------


@cache
def module_of():
    return hugging_face("gpt2").double()


def hooked(example, edit):
    """Logits at the readings, and every layer's values [T, H * K] where they enter the output projection."""
    module, handles, values = module_of(), [], {}
    last = max(example.positions)
    for layer, block in enumerate(module.transformer.h):
        here = (
            [(row, int(name.split("h")[1])) for row, name in enumerate(edit.heads) if name.startswith(f"a{layer}.")]
            if edit
            else []
        )
        seen = {}

        def keep(_, __, output, seen=seen):
            seen["q"], seen["k"], seen["v"] = output[0].split(module.config.n_embd, dim=-1)

        def change(_, args, here=here, seen=seen, layer=layer):
            z = args[0].clone()
            for row, head in here:
                part = slice(head * K, (head + 1) * K)
                if edit.kind == "offset":
                    z[0, :, part] += edit.vectors[row]
                elif edit.kind == "scale":
                    z[0, :, part] *= 1 + edit.vectors[row]
                elif edit.kind == "inject":
                    share = edit.shares[row]
                    z[0, last, part] = (1 - share) * z[0, last, part] + share * edit.vectors[row]
                else:
                    for t in range(len(example)):
                        scores = (seen["k"][: t + 1, part] @ seen["q"][t, part]) / K**0.5
                        attention = scores.softmax(0)
                        if t or edit.factor:  # the first token sees nothing else
                            attention[0] *= edit.factor
                        z[0, t, part] = (attention / attention.sum()) @ seen["v"][: t + 1, part]
            values[layer] = z[0]
            return (z,)

        handles += [block.attn.c_attn.register_forward_hook(keep), block.attn.c_proj.register_forward_pre_hook(change)]
    with torch.no_grad():
        logits = module(torch.tensor([example.clean])).logits[0]
    for handle in handles:
        handle.remove()
    return logits[list(example.positions)], values


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_edited_heads_equal_hooks_on_the_module(name, short):
    model, edit = shared("gpt2"), EDITS[name]
    how = {"first": edit.first_layer(model.graph), "positions": edit.positions} if short else {}
    batches = hold(model, Ablation("zero"), examples_of("gpt2"), get_metric("log_prob"), batch=4, **how)
    found = torch.cat([changed_logits(model, held, edit) for batch in batches for held in batch])
    wanted = torch.cat([hooked(one, edit)[0] for one in examples_of("gpt2")])
    assert float((found - wanted).abs().max()) < 1e-12
    unedited = torch.cat([hooked(one, None)[0] for one in examples_of("gpt2")])
    assert float((found - unedited).abs().max()) > 1e-3


def test_task_vectors_are_means_over_the_module():
    found = task_vectors(shared("gpt2"), examples_of("gpt2"), 3, "4GiB")
    for layer in range(3):
        rows = [hooked(one, None)[1][layer][max(one.positions)] for one in examples_of("gpt2")]
        assert torch.allclose(found[layer].flatten(), torch.stack(rows).mean(0), atol=1e-12)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gpt_neox", "gemma2", "gemma3_text", "attention_only", "parallel", "bidirectional"]
)
def test_edits_that_do_nothing_change_nothing(family):
    model, names = shared(family), ("a0.h0", "a1.h3")
    width = model.components.spec.d_head
    zeros = torch.zeros(2, width, dtype=torch.float64)
    nothing = [
        HeadEdit("offset", names, zeros),
        HeadEdit("scale", names, zeros),
        HeadEdit("inject", names, zeros + 1, torch.zeros(2, dtype=torch.float64)),
        HeadEdit("first_token", names, factor=1.0),
    ]
    before = evaluate_edit(model, examples_of(family), None, ["log_prob", "accuracy"])
    for edit in nothing:
        after = evaluate_edit(model, examples_of(family), edit, ["log_prob"])
        assert torch.allclose(after["log_prob"], before["log_prob"], atol=1e-6)  # a norm after attention is held in float32
    removed = evaluate_edit(model, examples_of(family), HeadEdit("scale", names, zeros - 1), ["log_prob"])
    mask = Circuit.from_heads(
        model.graph, [node.name for node in model.graph.senders if node.kind == "head" and node.name not in names]
    )
    wanted = Patching(model, Ablation("zero"), ()).evaluate(examples_of(family), {"": mask.mask}, [get_metric("log_prob")])
    assert torch.allclose(removed["log_prob"], wanted[""]["log_prob"], atol=1e-6)


@pytest.mark.parametrize("kind", ["offset", "inject", "scale"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_gradients_are_those_of_differences(family, kind):
    model = shared(family)
    fit = EditFit((0.0,), (1.0,), 1, 0.01, 4, 0, get_metric("log_prob"))
    splits = Splits(model, {"train": examples_of(family)[:4]}, 4, "4GiB")
    vectors = task_vectors(model, examples_of(family), 4, "4GiB") + 0.5
    learner = Learner(splits, kind, ["a0.h1", "a1.h2"], fit, vectors)
    with torch.no_grad():
        learner.parameter.add_(0.3 * torch.randn(learner.parameter.shape, generator=torch.Generator().manual_seed(0)))
    (batch,) = splits.batches("train", learner.edit())
    learner.loss(batch)
    assert learner.parameter.grad is not None
    gradient = learner.parameter.grad.flatten().clone()
    for index in range(0, len(gradient), 3):
        moved = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                learner.parameter.flatten()[index] += step
            moved.append(learner.loss(batch))
            with torch.no_grad():
                learner.parameter.flatten()[index] -= step
        assert float(gradient[index]) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-8)


# --- training, choice, report --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsure():
    """The induction toy with one of its induction heads turned down, so that an edit of the heads can help."""
    model = cd.load_model("toys/induction")
    return model, cd.load_task("induction", model, n=60, n_heldout=60, length=16)


def test_offsets_learn_and_are_reported(unsure):
    model, task = unsure
    found = localised(model, task, ["a1.h0", "a1.h1"], "offset", epochs=4, n_random=3, l1=[0.0, 0.5], learning_rate=0.05)
    history = found.learned.history
    assert len(history) == 8
    assert history[3]["train loss"] < history[0]["train loss"]
    assert found.learned.best["chosen by"] == max(row["chosen by"] for row in history)
    assert found.sizes == {"train": 40, "choose": 20, "report": 60}
    effect = found.get("log_prob")
    before = evaluate_edit(model, task.heldout, None, ["log_prob", "accuracy"])
    after = evaluate_edit(model, task.heldout, found.edit, ["log_prob", "accuracy"])
    assert effect.before == pytest.approx(float(before["log_prob"].double().mean()), abs=1e-5)
    assert effect.after == pytest.approx(float(after["log_prob"].double().mean()), abs=1e-5)
    assert found.get("accuracy").difference == pytest.approx(float((after["accuracy"] - before["accuracy"]).mean()), abs=1e-6)
    assert effect.low <= effect.difference <= effect.high
    assert effect.difference > 0
    assert all(set(one.edit.heads) != {"a1.h0", "a1.h1"} for one in found.controls)
    assert len({one.edit.heads for one in found.controls}) == 3
    for control, change in zip(found.controls, effect.controls, strict=True):
        values = evaluate_edit(model, task.heldout, control.edit, ["log_prob"])["log_prob"]
        assert change == pytest.approx(float((values - before["log_prob"]).mean()), abs=1e-5)
    assert effect.p_value == (1 + sum(control >= effect.difference for control in effect.controls)) / 4
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_a_price_makes_offsets_smaller(unsure):
    model, task = unsure
    sizes = []
    for price in (0.0, 0.05):
        vectors = localised(model, task, "all", "offset", epochs=3, n_random=0, l1=price).edit.vectors
        assert vectors is not None
        sizes.append(float(vectors.abs().sum()))
    assert sizes[1] < 0.5 * sizes[0]


def test_shares_of_a_vector_are_learned(unsure):
    model, task = unsure
    found = localised(model, task, ["a0.h1", "a1.h0"], "inject", epochs=6, n_random=0, learning_rate=0.3)
    assert found.edit.shares is not None
    of_mover = float(found.edit.shares[found.edit.heads.index("a1.h0")])
    assert of_mover < 0.3  # a mean tells nothing of this prompt: turned down, where the answer is carried
    others = localised(model, task, ["a0.h1"], "inject", epochs=1, n_random=0, demonstrations=task.train[:1]).edit.vectors
    assert others is not None
    own = task_vectors(model, task.train[:1], 4, "4GiB")[0, 1]
    assert torch.allclose(others[0], own, atol=1e-6)


def test_a_mean_behind_solved_examples():
    """The number of solved examples gives what examples give that are put together by hand."""
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=9, n_heldout=4, length=8)
    first = task.train[:6]  # a third of the nine chooses
    settings = {"kind": "inject", "epochs": 1, "n_random": 0}
    found = localised(model, task, ["a0.h1"], demonstrations=1, **settings).edit.vectors
    assert found is not None
    prefix = special_prefix(model.tokenizer, None)
    agreeing = 0
    for solved in first:
        before = (*solved.clean, *solved.answers[0][:1])
        joined = [(*before, *example.clean[len(prefix) :]) for example in first if example is not solved]
        by_hand = [Example(ids, None, (len(ids) - 1,), solved.answers, ((),)) for ids in joined]
        agreeing += torch.allclose(found[0], task_vectors(model, by_hand, 4, "4GiB")[0, 1], atol=1e-5)
    assert agreeing == 1
    framed = replace(task, settings={**task.settings, "shots": 2})
    with pytest.raises(BadSetting, match="have a frame already"):
        localised(model, framed, ["a0.h1"], demonstrations=1, **settings)
    with pytest.raises(BadTask, match="none can be used behind 6"):
        behind_solved(task, model, first, 6)


def test_the_best_factor_is_chosen_on_the_second_split(unsure):
    model, task = unsure
    factors = [0.0, 0.5, 3.0]
    found = localised(model, task, ["a1.h0", "a1.h1"], "first_token", factors=factors, metric="logit_diff", n_random=2)
    choose = task.train[40:]
    means = [
        float(
            evaluate_edit(model, choose, HeadEdit("first_token", ("a1.h0", "a1.h1"), factor=f), ["logit_diff"])[
                "logit_diff"
            ].mean()
        )
        for f in factors
    ]
    assert [row["chosen by"] for row in found.learned.history] == pytest.approx(means, abs=1e-5)
    assert found.edit.factor == factors[int(np.argmax(means))]
    assert [one.metric for one in found.effects] == ["logit_diff", "accuracy"]


def test_lofit_finds_the_heads_that_matter(unsure):
    model, task = unsure
    found = localised(model, task, "lofit", k=2, epochs=3, n_random=0, l1=0.0, selection_l1=0.01)
    norms = list(found.norms.items())
    assert [head for head, _ in norms[:2]] == sorted(found.edit.heads, key=lambda head: -found.norms[head])
    assert all(norms[i][1] >= norms[i + 1][1] for i in range(len(norms) - 1))
    fit = EditFit((0.0,), (1.0,), 3, 0.01, 16, 0, get_metric("log_prob"))
    priced = head_norms(Splits(model, {"train": task.train[:40]}, 16, "4GiB"), fit, 10.0)
    assert max(priced.values()) < 0.5 * norms[0][1]  # at a price that nothing is worth


# --- files, settings, resumption -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_survives_its_file(name, tmp_path):
    edit = EDITS[name]
    edit.save(tmp_path / "edit.safetensors")
    again = HeadEdit.load(tmp_path / "edit.safetensors")
    values = [evaluate_edit(shared("gpt2"), examples_of("gpt2"), one, ["log_prob"])["log_prob"] for one in (edit, again)]
    assert torch.equal(*values)
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_bad_files_and_foreign_edits_are_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    with pytest.raises(BadFile, match="is it missing"):
        HeadEdit.load(path)
    EDITS["inject"].save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadFile, match="cut short"):
        HeadEdit.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(BadFile, match="holds no edit of heads"):
        HeadEdit.load(path)
    with pytest.raises(GraphMismatch, match=r"'a2\.h3' is not a head"):
        evaluate_edit(shared("llama"), examples_of("llama"), EDITS["offset"], ["log_prob"])
    wide = HeadEdit("offset", ("a0.h0",), torch.zeros(1, 5))
    with pytest.raises(GraphMismatch, match="5 wide"):
        evaluate_edit(shared("gpt2"), examples_of("gpt2"), wide, ["log_prob"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: HeadEdit("offset", (), torch.zeros(0, 4)), "name at least one"),
        (lambda: HeadEdit("offset", ("a0.h0", "a0.h0"), torch.zeros(2, 4)), "each once"),
        (lambda: HeadEdit("offset", ("a0.h0",)), "needs vectors"),
        (lambda: HeadEdit("inject", ("a0.h0",), torch.zeros(1, 4)), "needs shares"),
        (lambda: HeadEdit("first_token", ("a0.h0",), factor=-1.0), "factor=-1.0 cannot be used"),
    ],
)
def test_edits_that_make_no_sense(make, sentence):
    with pytest.raises(BadSetting, match=sentence):
        make()


@pytest.mark.parametrize(
    ("heads", "settings", "error", "sentence"),
    [
        (["a0.h0"], {"kind": "ofset"}, UnknownName, "Did you mean offset"),
        (["a9.h0"], {}, GraphMismatch, "'a9.h0' is not a head"),
        ([], {}, BadSetting, "there is no head to edit"),
        (["a0.h0"], {"k": 2}, BadSetting, "k=2 is for heads=lofit"),
        ("lofit", {"k": 99}, BadSetting, "k=99 is more than the 12 heads"),
        (["a0.h0"], {"n_choose": 4}, BadTask, "cannot be dealt into some to train on"),
        (["a0.h0"], {"l1": -1}, BadSetting, "l1=-1 must be a number from 0"),
        (["a0.h0"], {"factors": []}, BadSetting, "factors= is empty"),
        (["a0.h0"], {"learning_rate": 0}, BadSetting, "learning_rate=0"),
        (["a0.h0"], {"metric": "logitdiff"}, UnknownName, "logit_diff"),
        (["a0.h0"], {"demonstrations": []}, BadSetting, "demonstrations= holds no examples"),
        (["a0.h0"], {"demonstrations": 2}, BadSetting, "demonstrations= is for kind=inject"),
        (["a0.h0"], {"demonstrations": 0, "kind": "inject"}, BadSetting, "demonstrations=0 must be"),
    ],
)
def test_bad_settings_get_a_sentence(heads, settings, error, sentence):
    with pytest.raises(error) as caught:
        localised(shared("gpt2"), task_of("gpt2"), heads, **settings)
    assert sentence in str(caught.value)


def test_a_model_that_runs_by_hooks_is_refused():
    with pytest.raises(BadSetting, match="runs through hooks"):
        localised(model_of("gpt2", components="hooks"), task_of("gpt2"), ["a0.h0"])


def test_a_killed_call_goes_on(unsure, tmp_path):
    model, task = unsure
    settings = {"epochs": 2, "n_random": 2, "l1": 0.0}
    path = tmp_path / "journal.jsonl"
    whole = localised(model, task, "lofit", k=1, journal=path, **settings)
    kept = path.read_text().splitlines()
    assert len(kept) == 1 + 2 * 4  # identity; norms and three edits, each with its mark
    path.write_text("\n".join(kept[:5]) + "\n")
    again = localised(model, task, "lofit", k=1, journal=path, **settings)
    assert again.to_dict() == whole.to_dict()
    assert path.read_text().splitlines() == kept
    changes = (
        (changed(model), task, {}, "other weights of the model"),
        (model, replace(task, train=task.train[1:]), {}, "other train examples"),
        (model, task, {"epochs": 3}, r"another epochs \(2, now 3\)"),
    )
    for other, examples, more, says in changes:
        with pytest.raises(BadRun, match=f"begun with {says}"):
            localised(other, examples, "lofit", k=1, journal=path, **unchecked({**settings, **more}))
    assert localised(model, task, "lofit", k=1, journal=path, **settings).to_dict() == whole.to_dict()


TOY = [
    "model=toys/induction",
    "task=induction",
    "task.length=8",
    "task.n=30",
    "task.n_heldout=20",
    "n_random=1",
    "progress=false",
]


def test_the_command_leaves_an_edit_that_can_be_made_again(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["localise", *TOY, "heads=[a1.h0,a1.h1]", "epochs=2", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    names = {"result.json", "arrays.npz", "report.html", "journal.jsonl", "edit.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=30, n_heldout=20, length=8)
    edit = cd.HeadEdit.load(out / "edit.safetensors")
    values = evaluate_edit(model, task.heldout, edit, ["log_prob"])["log_prob"].double().numpy()
    assert np.allclose(np.load(out / "arrays.npz")["after_log_prob"], values, atol=1e-5)
    result = json.loads((out / "result.json").read_text())
    assert result["result"]["heads"] == ["a1.h0", "a1.h1"]
    assert "a1.h0, a1.h1: a learned vector is added" in printed
    assert "default-src 'none'" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["head=a1.h0"], "unknown setting of localise 'head'. Did you mean heads"),
        (["heads=circuit"], "heads=circuit and circuit= go together"),
        (["kind=first"], "unknown value of kind 'first'. Did you mean first_token"),
        (["heads=a7.h7"], "'a7.h7' is not a head"),
        (["l1=much"], "l1='much'"),
    ],
)
def test_bad_input_leaves_nothing(args, sentence, tmp_path, capsys):
    assert main(["localise", *TOY, *args, f"out={tmp_path / 'out'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_of_unequal_length_are_padded_alike():
    model, edit = shared("gpt2"), replace(EDITS["inject"])
    one_by_one = [evaluate_edit(model, [one], edit, ["log_prob"])["log_prob"] for one in examples_of("gpt2")]
    together = evaluate_edit(model, examples_of("gpt2"), edit, ["log_prob"])["log_prob"]
    assert torch.allclose(torch.cat(one_by_one), together, atol=1e-12)
