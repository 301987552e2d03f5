"""Masks of desiderata: runs against hooks on the Hugging Face module, gradients against differences, and known answers."""

import json
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from changed import changed
from examples import random_examples
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.engine.changed_heads import hold
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadRun, BadSetting, BadTask, GraphMismatch, UnknownName
from circuitdisc.heads.dcm.dcm import dcm
from circuitdisc.heads.dcm.fit import TARGET_LOGIT, target_loss, train_mask
from circuitdisc.heads.dcm.parts import EdgeParts, HeadParts, draws
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.desiderata import Desideratum, load_desiderata, of_task
from circuitdisc.tasks.roles import position_of

GROUPS = {"one": ["a0.h1", "a1.h2"], "two": ["a2.h0"], "three": ["a1.h2", "a2.h3"]}
MASK = torch.tensor([0.3, 1.0, 0.6], dtype=torch.float64)
POSITIONS = {"all": "all", "end": "end", "two": ["s2", "end"]}


@cache
def shared(family):
    return model_of(family)


@cache
def examples_of(family):
    drawn = random_examples(shared(family), 6)
    return tuple(replace(one, roles={"s2": 1 + index % 3}) for index, one in enumerate(drawn))


def held(family, batch=6, positions="all"):
    """Made ready; with positions, tokens before the first of them are not run again."""
    return hold(shared(family), Ablation("resample"), examples_of(family), TARGET_LOGIT, batch=batch, positions=positions)


# --- the truth: hooks on the module, one prompt at a time ----------------------------------------------------------------


@cache
def module_of():
    return hugging_face("gpt2").double()


def hooked_logits(example, shares):
    """Logits at the readings, each head's values (before the output projection) mixed with those of the corrupted run.

    Args:
        shares: (layer, head, token) -> share of the corrupted value.
    """
    module, stored = module_of(), {}
    width = module.config.n_embd // module.config.n_head

    def run(ids, hook):
        layers = [(layer, block.attn.c_proj) for layer, block in enumerate(module.transformer.h)]
        handles = [out.register_forward_pre_hook(lambda _, args, layer=layer: hook(layer, args[0])) for layer, out in layers]
        with torch.no_grad():
            logits = module(torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return logits

    def store(layer, z):
        stored[layer] = z.clone()

    def mix(layer, z):
        z = z.clone()
        for (at, head, token), share in shares.items():
            if at == layer:
                part = slice(head * width, (head + 1) * width)
                z[0, token, part] = (1 - share) * z[0, token, part] + share * stored[layer][0, token, part]
        return (z,)

    run(example.corrupted, store)
    return run(example.clean, mix)[list(example.positions)]


def shares_of(example, groups, mask, positions):
    """(layer, head, token) -> share; a head in two groups keeps the product of what each leaves."""
    places = (
        range(len(example)) if positions == "all" else [position_of(example, at) for at in np.atleast_1d(positions).tolist()]
    )
    found = {}
    for heads, m in zip(groups.values(), mask.tolist(), strict=True):
        for head in heads:
            layer, _, number = head[1:].partition(".h")
            for token in places:
                at = (int(layer), int(number), token)
                found[at] = 1 - (1 - found.get(at, 0.0)) * (1 - m)
    return found


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("where", POSITIONS)
def test_mixed_heads_equal_hooks_on_the_module(where, tail):
    model, positions = shared("gpt2"), POSITIONS[where]
    parts = HeadParts(model.graph, GROUPS, positions)
    batches = held("gpt2", 4, positions if tail else "all")
    assert (where != "all" and tail) == any(one.start > 0 for batch in batches for one in batch)
    found = torch.cat([parts.logits(model, one, MASK) for batch in batches for one in batch])
    wanted = [hooked_logits(one, shares_of(one, GROUPS, MASK, positions)) for one in examples_of("gpt2")]
    assert float((found - torch.cat(wanted)).abs().max()) < 1e-12
    unpatched = torch.cat([hooked_logits(one, {}) for one in examples_of("gpt2")])
    assert float((found - unpatched).abs().max()) > 1e-3


def test_each_group_may_have_its_own_place():
    model = shared("gpt2")
    parts = HeadParts(model.graph, GROUPS, {"one": "all", "two": "s2", "three": "end"})
    (batch,) = held("gpt2")
    found = torch.cat([parts.logits(model, one, MASK) for one in batch])
    wanted = []
    for one in examples_of("gpt2"):
        left: dict = {}
        for index, (name, at) in enumerate((("one", "all"), ("two", "s2"), ("three", "end"))):
            for key, share in shares_of(one, {name: GROUPS[name]}, MASK[index : index + 1], at).items():
                left[key] = left.get(key, 1.0) * (1 - share)
        wanted.append(hooked_logits(one, {key: 1 - value for key, value in left.items()}))
    assert float((found - torch.cat(wanted)).abs().max()) < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "attention_only", "parallel"])
def test_masks_of_zero_leave_the_clean_run(family):
    model = shared(family)
    heads, edges = HeadParts(model.graph, {"x": ["a0.h0", "a1.h3"]}), EdgeParts(model.graph, model.graph.edge_mask, "end")
    for one in (one for batch in held(family) for one in batch):
        own = model.own_logits(one.chunk.batch.clean, one.chunk.batch.is_token.long(), one.chunk.batch.position_ids)
        for parts in (heads, edges):
            found = parts.logits(model, one, torch.zeros(len(parts.names), dtype=torch.float64))
            assert float((found - own[one.chunk.batch.reads]).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neox", "gemma2", "parallel", "bidirectional"])
@pytest.mark.parametrize("where", POSITIONS)
def test_a_head_is_all_edges_that_leave_it(family, where):
    model, positions = shared(family), POSITIONS[where]
    parts = HeadParts(model.graph, {"x": ["a0.h1", "a1.h0"]}, positions)
    mask = np.zeros_like(model.graph.edge_mask)
    mask[:, [model.graph.sender_index[head] for head in ("a0.h1", "a1.h0")]] = True
    edges = EdgeParts(model.graph, mask & model.graph.edge_mask, positions)
    for one, short in zip(held(family)[0], held(family, positions=positions)[0], strict=True):
        whole = parts.logits(model, one, torch.full((1,), 0.7, dtype=torch.float64))
        tail = parts.logits(model, short, torch.full((1,), 0.7, dtype=torch.float64))
        assert float((whole - tail).abs().max()) < 1e-9
        apart = edges.logits(model, one, torch.full((len(edges.names),), 0.7, dtype=torch.float64))
        assert float((whole - apart).abs().max()) < 1e-9


def test_whole_edges_patched_everywhere_are_the_run_of_a_circuit():
    model = shared("gpt2")
    generator = np.random.default_rng(0)
    cut = model.graph.edge_mask & (generator.random(model.graph.edge_mask.shape) < 0.3)
    edges = EdgeParts(model.graph, cut)
    (batch,) = held("gpt2")
    found = torch.cat([edges.logits(model, one, torch.ones(len(edges.names), dtype=torch.float64)) for one in batch])
    patching = Patching(model, Ablation("resample"), ())
    (chunk,) = patching.hold(examples_of("gpt2"))
    assert torch.allclose(found, patching.circuit_logits(chunk, model.graph.edge_mask & ~cut), atol=1e-9)


# --- gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["head", "edge"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_gradients_are_those_of_differences(family, over):
    model = shared(family)
    some = np.zeros_like(model.graph.edge_mask)
    for name in ("a0.h1->m0", "input->a1.h0<q>", "m0->logits", "a0.h2->a1.h1<v>"):
        some[model.graph.parse_edge(name)] = True
    groups = {"one": ["a0.h1", "a1.h2"], "two": ["a0.h1"], "three": ["a1.h3"]}
    parts = EdgeParts(model.graph, some, ["s2", "end"]) if over == "edge" else HeadParts(model.graph, groups, ["s2", "end"])
    mask = torch.linspace(0.2, 0.9, len(parts.names), dtype=torch.float64).requires_grad_()
    (batch,) = held(family)
    target_loss(model, parts, batch, mask, 0.25)
    assert mask.grad is not None
    for index in range(len(parts.names)):
        moved = []
        for step in (1e-5, -1e-5):
            other = mask.detach().clone()
            other[index] += step
            moved.append(target_loss(model, parts, batch, other.requires_grad_(), 0.25))
        assert float(mask.grad[index]) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-5, abs=1e-7)


# --- known answers -------------------------------------------------------------------------------------------------------


def toy_desideratum(n=40):
    """The induction toy: what follows A is another token in the corrupted prompt, and the toy should say that one."""
    model = cd.load_model("toys/induction")
    return model, of_task(cd.load_task("induction", model, n=n, n_heldout=40, length=8))


@pytest.fixture(scope="module")
def planted():
    """Prompts whose corrupted partner has another token where the answer stands first: only what carries it can bring it."""
    model, one = toy_desideratum()

    def changed(example):
        clean, answer = list(example.clean), example.wrong[0][0]
        new = next(token for token in range(1, model.d_vocab) if token not in clean)
        corrupted = [new if token == answer else token for token in clean]
        return replace(example, corrupted=tuple(corrupted), answers=((new,),))

    splits = (tuple(map(changed, getattr(one, split))) for split in ("train", "choose", "report"))
    return model, Desideratum("value", *splits, positions="end")


def test_the_induction_heads_are_found(planted):
    model, desideratum = planted
    found = dcm(model, desideratum, penalties=[0.01, 1.0], n_random=5)
    one = found.get("value")
    assert set(one.masked) <= {"a1.h0", "a1.h1"}  # the previous-token head a0.h1 reads nothing of it at the last token
    assert one.masked
    assert one.patched.share > 0.7
    assert one.patched.low < one.patched.share <= one.patched.high
    assert one.nothing.share < 0.1
    assert one.nothing.kept > 0.7  # the unpatched model gives its own answer
    assert one.patched.kept < 0.1
    assert one.sizes == {"train": 20, "choose": 20, "report": 40}
    chosen = one.trial
    assert chosen.chosen_by == max(trial.chosen_by for trial in one.trials)
    assert chosen.size == min(trial.size for trial in one.trials if trial.chosen_by == chosen.chosen_by)


def test_groups_are_told_apart(planted):
    model, desideratum = planted
    groups = {"movers": ["a1.h0", "a1.h1"], "previous": ["a0.h1"]}
    found = dcm(model, desideratum, "group", groups=groups, penalties=1.0, n_random=3)
    assert found.get("value").masked == ("movers",)
    movers, previous = found.groups
    assert movers.met.share == found.get("value").patched.share
    assert previous.met.share < 0.1
    assert movers.heads == ("a1.h0", "a1.h1")
    values = found.head_map("value")
    assert values[1, 0] == values[1, 1] > 0.5 > values[0, 1]
    assert np.isnan(values[0, 0])
    assert len(found.groups[0].random) == 3
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert set(found.arrays()) == {"masks_value", "met_value"}
    assert found.arrays()["met_value"].mean(1)[0] == found.get("value").patched.share


def test_edges_of_a_circuit(planted):
    model, desideratum = planted
    circuit = Circuit.from_edges(model.graph, ["a1.h0->logits", "a1.h1->logits", "input->logits", "a0.h0->logits"])
    found = dcm(model, desideratum, "edge", circuit=circuit, penalties=1.0, epochs=4, n_random=2).get("value")
    assert set(found.masked) == {"a1.h0->logits", "a1.h1->logits"}
    assert found.patched.share > 0.7


def test_the_value_of_entity_tracking_is_in_three_heads_of_the_last_layer():
    model = cd.load_model("multitask/base")
    (value,) = load_desiderata("entity_tracking", model, names="value", n_train=20, n_choose=10, n_report=20)
    heads = {head: [head] for head in ("a3.h0", "a3.h1", "a3.h4", "a3.h5", "a2.h0", "a0.h0")}
    found = dcm(model, value, "group", groups=heads, penalties=1.0, epochs=6, n_random=0).get("value")
    assert set(found.masked) == {"a3.h0", "a3.h1", "a3.h4"}
    assert found.patched.share > 0.8
    assert found.nothing.share == 0


# --- splits, targets, files ----------------------------------------------------------------------------------------------


def test_entity_tracking_ships_with_three():
    model = cd.load_model("multitask/base")
    found = load_desiderata("entity_tracking", model, n_train=5, n_choose=4, n_report=3, boxes=4)
    assert [one.name for one in found] == ["value", "position", "label"]
    for one in found:
        assert [len(getattr(one, split)) for split in ("train", "choose", "report")] == [5, 4, 3]
        drawn = cd.load_task("entity_tracking", model, n=9, n_heldout=3, boxes=4, corruption=one.name)
        assert [example.clean for example in (*one.train, *one.choose)] == [example.clean for example in drawn.train]
        for mine, theirs in zip(one.report, drawn.heldout, strict=True):
            assert mine.answers == tuple(wrong[:1] for wrong in theirs.wrong)
            assert mine.wrong == theirs.answers
    with pytest.raises(UnknownName, match="desideratum of task 'entity_tracking' 'colour'"):
        load_desiderata("entity_tracking", model, names="colour")
    with pytest.raises(BadSetting, match="corruption= cannot be set here"):
        load_desiderata("entity_tracking", model, corruption="value")
    with pytest.raises(UnknownName, match="task with desiderata 'ioi'"):
        load_desiderata("ioi", model)


def lines(n=9, **changes):
    return [{"desideratum": "d", "clean": [1, i], "corrupted": [2, i], "answers": 3, "wrong": 4, **changes} for i in range(n)]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_of_your_own(tmp_path):
    model = cd.load_model("toys/induction")
    rows = [*lines(9), *lines(6, desideratum="e", answers=5)]
    d, e = load_desiderata(write(tmp_path / "mine.jsonl", rows), model)
    assert [len(getattr(d, split)) for split in ("train", "choose", "report")] == [3, 3, 3]
    assert [len(getattr(e, split)) for split in ("train", "choose", "report")] == [2, 2, 2]
    assert {one.answers for one in e.train} == {((5,),)}
    named = [{**row, "split": "heldout" if i < 2 else "train"} for i, row in enumerate(lines(9))]
    (one,) = load_desiderata(write(tmp_path / "named.jsonl", named), model, n_choose=2)
    assert {example.clean for example in one.report} == {(1, 0), (1, 1)}
    assert [len(one.train), len(one.choose)] == [5, 2]


@pytest.mark.parametrize(
    ("rows", "error", "sentence"),
    [
        (
            [*lines(2), {"clean": [1, 7], "corrupted": [2, 7], "answers": 3}],
            BadFile,
            "mine.jsonl:3: the field 'desideratum' is missing",
        ),
        (lines(3, desideratum=5), BadFile, "mine.jsonl:1: 'desideratum' is 5: give a text"),
        (lines(3, corrupted=None), BadFile, "mine.jsonl:1: the field 'corrupted' is missing"),
        (lines(3, desideratun="x"), BadFile, "mine.jsonl:1: unknown field 'desideratun'. Did you mean desideratum"),
        (lines(3, corrupted=[1]), BadTask, "mine.jsonl:1"),
        (lines(2), BadTask, "desideratum 'd' has 2 distinct examples"),
    ],
)
def test_a_bad_file_gets_a_sentence(rows, error, sentence, tmp_path):
    with pytest.raises(error) as caught:
        load_desiderata(write(tmp_path / "mine.jsonl", rows), cd.load_model("toys/induction"))
    assert sentence in str(caught.value)


def test_splits_must_not_share_prompts():
    _, one = toy_desideratum(8)
    with pytest.raises(BadTask, match="is in split 'train' and in 'report'"):
        Desideratum("x", one.train, one.choose, one.train[:1])
    with pytest.raises(BadTask, match="no examples in split 'choose'"):
        Desideratum("x", one.train, (), one.report)


def test_random_sets_are_drawn_without_replacement():
    names = [f"x{i}" for i in range(5)]
    found = draws(names, frozenset({0, 1}), 50, np.random.default_rng(0))
    assert len(found) == len(set(found)) == 9  # all pairs but the mask itself
    assert all(len(one) == 2 for one in found)
    assert frozenset({0, 1}) not in found
    assert draws(names, frozenset(), 3, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"over": "group"}, BadSetting, "over=group needs groups"),
        ({"over": "edge"}, BadSetting, "over=edge needs a circuit"),
        ({"over": "heads"}, UnknownName, "Did you mean head"),
        ({"groups": {"A": ["a9.h9"]}, "over": "group"}, GraphMismatch, "'a9.h9' is not a head"),
        ({"groups": {"A": []}, "over": "group"}, BadSetting, "group 'A' holds no head"),
        ({"groups": {"A": ["a0.h0"]}, "over": "group", "positions": {"B": "end"}}, UnknownName, "component in positions 'B'"),
        ({"positions": "s9"}, UnknownName, "s9"),
        ({"penalties": -1.0}, BadSetting, "penalties=-1.0 must be a number from 0"),
        ({"start": 2.0}, BadSetting, "start=2.0 must be a number from 0 to 1"),
        ({"epochs": 0}, BadSetting, "epochs=0 must be a whole number from 1"),
        ({"memory": "1KiB"}, BadSetting, "raise memory="),
    ],
)
def test_bad_settings_get_a_sentence(settings, error, sentence):
    model, one = toy_desideratum(8)
    with pytest.raises(error) as caught:
        dcm(model, one, **settings)
    assert sentence in str(caught.value)


def test_a_model_that_runs_by_hooks_is_refused():
    examples = random_examples(shared("gpt2"), 6)
    one = of_task(Task("random", tuple(examples[:4]), tuple(examples[4:])))
    with pytest.raises(BadSetting, match="runs through hooks"):
        dcm(model_of("gpt2", components="hooks"), one)


# --- killed and begun again; the command ---------------------------------------------------------------------------------


def test_a_killed_call_goes_on_to_the_same_masks(planted, tmp_path, monkeypatch):
    model, one = planted
    settings = {"penalties": [0.01, 1.0], "n_random": 2}
    whole = dcm(model, one, **settings)
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    dcm(model, one, journal=journal, **settings)
    journal.close()
    kept = path.read_text().splitlines()
    path.write_text("\n".join(kept[:3]) + '\n{"unit": "val')  # identity, one mask with its mark, and half a line
    trained = []
    room = sys.modules["circuitdisc.heads.dcm.dcm"]
    monkeypatch.setattr(room, "train_mask", lambda *args: (trained.append(args[4]), train_mask(*args))[1])
    again = dcm(model, one, journal=Journal(path), **settings)
    assert trained == [1.0]  # the penalty whose mask was missing
    assert again.to_dict() == whole.to_dict()
    changes = (
        (changed(model), one, {}, "other weights of the model"),
        (model, replace(one, train=one.train[1:]), {}, f"other train examples of desideratum '{one.name}'"),
        (model, replace(one, choose=one.choose[1:]), {}, f"other choose examples of desideratum '{one.name}'"),
        (model, one, {"epochs": 3}, r"another epochs \(2, now 3\)"),
    )
    for other, asked, more, says in changes:
        with pytest.raises(BadRun, match=f"begun with {says}"):
            dcm(other, asked, journal=Journal(path), **{**settings, **more})
    assert dcm(model, one, journal=Journal(path), **settings).to_dict() == whole.to_dict()


TOY = [
    "model=toys/induction",
    "task=induction",
    "task.length=8",
    "task.n=12",
    "task.n_heldout=12",
    "n_random=2",
    "progress=false",
]


def test_the_command_prints_what_python_gives(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["dcm", *TOY, "penalties=[0.1]", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"result.json", "arrays.npz", "report.html", "journal.jsonl"}
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=24, n_heldout=12, length=8)
    wanted = dcm(model, of_task(task, 12), penalties=0.1, n_random=2)
    assert json.loads((out / "result.json").read_text())["result"] == json.loads(json.dumps(wanted.to_dict()))
    assert f"{len(wanted.found[0].masked)}" in printed
    assert main(["dcm", *TOY, f"out={out}"]) == 2  # a finished folder is left alone
    assert "holds a result" in capsys.readouterr().err
    (out / "result.json").unlink()  # as if killed before the end: the mask is not trained again
    before = (out / "journal.jsonl").read_text()
    assert main(["dcm", *TOY, "penalties=[0.1]", f"out={out}"]) == 0
    assert (out / "journal.jsonl").read_text() == before
    page = (out / "report.html").read_text()
    assert "Mask for induction" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["overr=head"], "unknown setting of dcm 'overr'. Did you mean over"),
        (["over=group"], "over=group needs groups"),
        (["circuit=nowhere"], "circuit=nowhere is neither"),
        (["desiderata=value"], "cannot be chosen: task 'induction' stands for one"),
        (["positions=s7"], "s7"),
        (["task=entity_tracking", "model=multitask/base", "task.corruption=label"], "name it with desiderata=label"),
    ],
)
def test_bad_input_leaves_nothing(args, sentence, tmp_path, capsys):
    base = TOY if not any(arg.startswith("task=") for arg in args) else ["progress=false"]
    assert main(["dcm", *base, *args, f"out={tmp_path / 'out'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
