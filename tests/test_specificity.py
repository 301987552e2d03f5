"""Specificity: two heads that were planted for a task each, and figures against values taken by hand."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from examples import TINY_RUN
from made_pages import Page

import circuitdisc as cd
from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.certainty.general_text import for_any_text, text_divergence, text_examples
from circuitdisc.certainty.specificity import OWN, WORST, Specificity, specificity, without
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.cli import main
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadTask
from circuitdisc.known.compiled.plan import Head, ProgramPlan
from circuitdisc.known.compiled.program import GAIN, eye
from circuitdisc.metrics import METRICS, get_metric
from circuitdisc.models.load import cut_toy
from circuitdisc.pages.certainty import specificity_parts, specificity_verdict
from circuitdisc.tasks.base import Example, Task

torch.set_num_threads(1)
HALF, LENGTH = 8, 5


@cache
def planted():
    """Head h of layer 0 says the previous token again, where it is of half h of the vocabulary; a task for each half."""
    tokens, positions, back = eye(2 * HALF), eye(LENGTH), eye(LENGTH).roll(-1, dims=1)
    back[0] = 0.0
    halves = [tokens * (torch.arange(2 * HALF) // HALF == half).double() for half in (0, 1)]
    heads = [Head({"position": back}, {"position": positions}, {"token": half}, "previous") for half in halves]
    plan = ProgramPlan(True, {"token": tokens}, {"position": positions}, {0: heads}, "previous", GAIN * tokens)
    model, tasks = cut_toy(plan.compile(distractors=3, rotate=1), name="halves"), []
    for half in (0, 1):
        generator, examples = np.random.default_rng(half), []
        for index in range(24):
            clean, corrupted = (HALF * half + generator.permutation(HALF)[:LENGTH] for _ in range(2))
            right, wrong = int(clean[-2]), int(HALF * half + (clean[-2] - HALF * half + 1) % HALF)
            ids = (tuple(map(int, clean)), tuple(map(int, corrupted)))
            examples.append(Example(*ids, (LENGTH - 1,), ((right,),), ((wrong,),), text=f"prompt {index}"))
        tasks.append(Task(f"half {half}", tuple(examples[:12]), tuple(examples[12:])))
    return model, tasks


@cache
def circuit_of(half: int) -> Circuit:
    model, tasks = planted()
    return cd.discover(model, tasks[half], "acdc", ablation="zero", threshold=0.01).circuit


@cache
def measured() -> Specificity:
    model, tasks = planted()
    others = {"half 1": tasks[1]}
    runs = {"other": (circuit_of(1), tasks[1])}
    return specificity(model, tasks[0], circuit_of(0), others=others, runs=runs, n_random=4)


# --- the matrix -----------------------------------------------------------------------------------------------------------


def test_each_head_is_specific_to_its_own_half():
    assert circuit_of(0).heads() == ["a0.h0"]
    assert circuit_of(1).heads() == ["a0.h1"]
    cells = {(cell.circuit, cell.task): cell for cell in measured().cells}
    assert len(cells) == 6
    for (circuit, task), cell in cells.items():
        own = (circuit == OWN) == (task == "half 0")
        assert cell.is_own == (own and task != "half 1")
        assert cell.faithfulness == pytest.approx(float(own), abs=1e-9)
        assert cell.damage == pytest.approx(float(own), abs=1e-9)
        assert cell.damage_low is not None
        assert cell.damage is not None
        assert cell.damage_low <= cell.damage + 1e-9
    said = specificity_verdict(measured())
    assert "Cutting its edges alone takes 100 %" in said.headline
    assert "It damages its own task clearly more than 2 of 2 other tasks." in said.lines
    assert not any("not specific" in caveat for caveat in said.caveats)


def test_a_circuit_that_damages_all_is_said_not_to_be_specific():
    model, tasks = planted()
    whole = Circuit.full(model.graph).with_provenance(circuit_of(0).provenance)
    result = specificity(model, tasks[0], whole, others={"half 1": tasks[1]}, n_random=0)
    assert [cell.damage for cell in result.cells] == pytest.approx([1.0, 1.0])
    said = specificity_verdict(result)
    assert "Not clearly less than its own task it damages half 1: there it is not specific." in said.caveats
    assert any("chance is not ruled out" in caveat for caveat in said.caveats)


def test_figures_are_those_of_the_values_themselves(lightweight):
    task = cd.load_task("tpp", lightweight, n=12, n_heldout=12)
    found = cd.discover(lightweight, task, "eap", ablation="mean", fraction=0.2)
    result = specificity(lightweight, task, found.circuit, n_random=2)
    graph, mask = lightweight.graph, found.circuit.mask
    masks = {"full": graph.edge_mask, "empty": np.zeros_like(mask), "kept": mask, "gone": graph.edge_mask & ~mask}
    metrics = [get_metric("logit_diff"), METRICS["kl"]]
    values = Patching(lightweight, get_ablation("mean"), task.train).evaluate(task.heldout, masks, metrics)
    mean = {name: float(row["logit_diff"].mean()) for name, row in values.items()}
    (cell,) = result.cells
    assert cell.faithfulness == pytest.approx((mean["kept"] - mean["empty"]) / (mean["full"] - mean["empty"]))
    assert cell.damage == pytest.approx((mean["full"] - mean["gone"]) / (mean["full"] - mean["empty"]))
    by_metric, by_kl = result.worst
    apart = {
        "logit_diff": (values["kept"]["logit_diff"] - values["full"]["logit_diff"]).abs().numpy(),
        "kl": -values["kept"]["kl"].numpy(),
    }
    for worst in (by_metric, by_kl):
        own = apart[worst.of]
        order = sorted(range(len(own)), key=lambda at: -own[at])[:WORST]
        assert [each.prompt for each in worst.examples] == [task.heldout[at].text for at in order]
        assert [each.value for each in worst.examples] == pytest.approx([own[at] for at in order])
        assert worst.worst == pytest.approx(max(own))
        assert worst.mean == pytest.approx(np.mean(own))
        assert worst.examples[0].sds == pytest.approx((max(own) - np.mean(own)) / np.std(own, ddof=1))


def test_of_a_head_circuit_its_heads_go():
    graph = planted()[0].graph
    rest = without(Circuit.from_heads(graph, ["a0.h1"]))
    assert rest == Circuit.from_heads(graph, [name for name in graph.heads if name != "a0.h1"])
    edges = circuit_of(0)
    assert not (without(edges).mask & edges.mask).any()
    assert without(edges).n_edges + edges.n_edges == graph.n_edges


def test_a_task_that_the_model_does_not_do_is_left_out_with_a_note():
    model, tasks = planted()
    hopeless = Task("hopeless", tasks[1].train, ())
    wrong_way = [Example(e.clean, e.corrupted, e.positions, e.wrong, e.answers) for e in (*tasks[1].train, *tasks[1].heldout)]
    swapped = Task("swapped", tuple(wrong_way[:12]), tuple(wrong_way[12:]))
    result = specificity(model, tasks[0], circuit_of(0), others={"hopeless": hopeless, "swapped": swapped}, n_random=0)
    assert [cell.task for cell in result.cells] == ["half 0"]
    assert [note.partition(":")[0] for note in result.notes] == ["hopeless", "swapped"]
    assert "chance" in result.notes[1]


def alone(example: Example) -> Example:
    """Without its corrupted prompt."""
    return replace(example, corrupted=None)


def test_an_ablation_that_a_task_cannot_have_is_a_sentence_in_its_cells():
    model, tasks = planted()
    bare = Task("bare", tuple(map(alone, tasks[1].train)), tuple(map(alone, tasks[1].heldout)))
    result = specificity(model, tasks[0], circuit_of(0), others={"bare": bare}, n_random=0, ablation="resample")
    assert result.cells[0].note == ""
    assert "corrupted" in result.cells[1].note
    assert specificity_parts(result)[0].rows[1][4].startswith("undefined")


def test_a_killed_call_goes_on(tmp_path):
    model, tasks = planted()
    given: dict[str, Any] = {"others": {"half 1": tasks[1]}, "n_random": 2, "journal": tmp_path / "cells.jsonl"}
    first = specificity(model, tasks[0], circuit_of(0), **given)
    n_lines = len((tmp_path / "cells.jsonl").read_text().splitlines())
    assert specificity(model, tasks[0], circuit_of(0), **given).cells == first.cells
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == n_lines


# --- general text ---------------------------------------------------------------------------------------------------------

TEXTS = ["all otter are goat", "museum implies fork and fork implies lamp", "x", ""]


def test_on_general_text_the_whole_graph_is_the_model_and_kl_is_that_of_the_logits(lightweight):
    task = cd.load_task("tpp", lightweight, n=6, n_heldout=6)
    graph = lightweight.graph
    masks = {"circuit": graph.edge_mask, "empty": np.zeros_like(graph.edge_mask)}
    given = {"memory": "1GiB", "confidence": 0.95, "seed": 0}
    whole, _ = text_divergence(lightweight, task, TEXTS, masks, get_ablation("zero"), 64, given)
    assert whole.n == 2
    assert whole.kl == pytest.approx(0, abs=1e-9)
    nothing, forwards = text_divergence(
        lightweight, task, TEXTS, {**masks, "circuit": masks["empty"]}, Ablation("zero"), 64, given
    )
    assert nothing.kl == pytest.approx(nothing.empty) == pytest.approx(whole.empty)
    patching, by_hand = Patching(lightweight, get_ablation("zero"), task.train), []
    for example in text_examples(lightweight, TEXTS, 64):
        (chunk,) = patching.chunks([example])
        full, empty = (patching.circuit_logits(chunk, masks[name]).double().log_softmax(-1) for name in ("circuit", "empty"))
        by_hand.append(float((full.exp() * (full - empty)).sum(-1).mean()))
    assert nothing.kl == pytest.approx(np.mean(by_hand))
    assert nothing.worst == pytest.approx(max(by_hand))
    assert forwards == pytest.approx(2.0), "the model once a text; an empty circuit costs nothing"
    little, _ = text_divergence(lightweight, task, TEXTS, masks, get_ablation("zero"), 64, {**given, "memory": 10_000})
    assert little.empty == pytest.approx(whole.empty), "whatever the number of texts at once"


def test_texts_are_cut_to_length_and_ablated_by_what_knows_no_position(lightweight):
    assert [len(example) for example in text_examples(lightweight, TEXTS, 3)] == [3, 3]
    assert for_any_text(Ablation("zero")).kind == "zero"
    for given in (Ablation("mean", "group"), Ablation("resample"), Ablation("zero", target="pattern")):
        assert for_any_text(given) == Ablation("mean", "dataset")
    with pytest.raises(BadTask, match="two tokens"):
        text_examples(lightweight, ["x", ""], 3)
    with pytest.raises(BadTask, match="no tokenizer"):
        text_examples(planted()[0], TEXTS, 3)


# --- the command ----------------------------------------------------------------------------------------------------------


def test_through_json_and_onto_a_page():
    result = measured()
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Specificity.from_dict(data).to_dict() == data
    for part in specificity_parts(result):
        assert part.rows
        assert all(len(row) == len(part.headers) for row in part.rows)


def test_the_command_leaves_a_file_and_sections(tmp_path, capsys):
    run, other, texts = tmp_path / "run", tmp_path / "other", tmp_path / "texts.txt"
    eap = [*TINY_RUN[:-1], "algorithm=eap", "algorithm.grow=greedy"]
    assert main([*eap, f"out={run}"]) == 0
    assert main([*eap, "seed=1", f"out={other}"]) == 0
    texts.write_text("\n".join(TEXTS))
    capsys.readouterr()
    named = [
        "tasks=[tpp,greater_than]",
        "n=4",
        "n_heldout=4",
        f"runs=[{other}]",
        f"texts={texts}",
        "n_random=2",
        "progress=false",
    ]
    assert main(["specificity", str(run), *named]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "specificity.json").read_text())
    assert {cell["circuit"] for cell in record["cells"]} == {OWN, "other"}
    assert record["notes"][0].startswith("greater_than: ")
    assert record["texts"]["n"] == 2
    for text in (out, Page((run / "report.html").read_text("utf-8")).words):
        assert "Worst cases" in text
        assert "General text" in text
        assert "tpp of other" in text
    assert [(cell["task"], cell["is_own"]) for cell in record["cells"][:2]] == [("tpp", True), ("tpp of other", False)]
    for bad, says in ((["tasks=[tppp]"], "tpp"), ([f"runs=[{run}]"], "the run itself"), (["texts=nowhere.txt"], "nowhere.txt")):
        assert main(["specificity", str(run), *bad]) == 2
        assert says in capsys.readouterr().err


def test_a_circuit_without_an_ablation_is_refused():
    model, tasks = planted()
    with pytest.raises(cd.CircuitdiscError, match="ablation"):
        specificity(model, tasks[0], circuit_of(0).with_provenance(Provenance()))
