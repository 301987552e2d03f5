"""Agreement of a circuit with the full model, against the most likely tokens of masked runs, picked out one by one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_task
from made_pages import Page
from models import model_of
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.controls import random_circuits
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.jobs.pipeline import write_page
from circuitdisc.metrics import Labels
from circuitdisc.pages.scores import judgement_parts
from circuitdisc.schemas import validate
from circuitdisc.scoring.agreement import TopAgreement, agreement, agrees
from circuitdisc.stats import share_interval
from circuitdisc.wording import percent

torch.set_num_threads(1)


def some_circuit(graph, share=0.6, seed=3):
    return Circuit(graph, graph.edge_mask & (np.random.default_rng(seed).random(graph.edge_mask.shape) < share))


def hits(patching, task, mask, full):
    """1 or 0 of each example, by lists and their largest entry."""
    found = []
    for chunk in patching.chunks(task.heldout):
        tops = [max(range(len(row)), key=row.__getitem__) for row in masked_run(patching.model, chunk, mask).tolist()]
        whole = [max(range(len(row)), key=row.__getitem__) for row in masked_run(patching.model, chunk, full).tolist()]
        alike = torch.tensor([float(a == b) for a, b in zip(tops, whole, strict=True)], dtype=torch.float64)
        found.append(chunk.batch.per_example(alike))
    return torch.cat(found).numpy()


@pytest.mark.parametrize("kind", ["resample", "mean"])
@pytest.mark.parametrize("heads", [False, True])
def test_it_is_the_share_of_equal_choices(kind, heads):
    model = model_of("gpt2")
    task, graph = random_task(model, n=12), model.graph
    circuit = Circuit.from_heads(graph, ["a0.h1", "a1.h3", "a2.h0"]) if heads else some_circuit(graph)
    found = agreement(model, task, circuit, ablation=kind, n_random=3, seed=5)
    patching = Patching(model, Ablation(kind), task.train)
    empty = Circuit.from_heads(graph, []) if heads else Circuit.empty(graph)
    own, nothing = (hits(patching, task, one.mask, graph.edge_mask) for one in (circuit, empty))
    assert found.circuit.value == pytest.approx(own.mean())
    assert found.empty.value == pytest.approx(nothing.mean())
    ends = share_interval(own)
    assert (found.circuit.low, found.circuit.high) == ends.ends
    drawn = random_circuits(circuit, 3, np.random.default_rng(5)).circuits
    wanted = [hits(patching, task, one.mask, graph.edge_mask).mean() for one in drawn]
    assert found.circuit.controls == pytest.approx(wanted)
    assert 0 < own.mean() < 1, "a case that tells"
    assert validate(TopAgreement, json.loads(json.dumps(found.to_dict())), "here") == found


def test_the_full_model_agrees_with_itself_and_ties_count():
    model = model_of("gpt2")
    task = random_task(model, n=5)
    whole = agreement(model, task, Circuit.full(model.graph), ablation="zero")
    assert (whole.circuit.value, whole.circuit.controls) == (1.0, ())
    full = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]).log_softmax(-1)
    none = torch.zeros(3, 0, dtype=torch.long)
    labels = Labels(none, none.bool(), none, none.bool(), full)
    logits = torch.eye(3)
    assert agrees(logits, labels).tolist() == [1.0, 1.0, 0.0]
    assert agrees(torch.stack([logits, logits.flip(0)]), labels).tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_it_says_what_it_found_and_when_it_is_no_merit():
    model = model_of("gpt2")
    found = agreement(model, random_task(model, n=12), some_circuit(model.graph), ablation="mean", n_random=3)
    said = found.describe()
    assert percent(found.circuit.value) in said.verdict[0]
    assert percent(found.empty.value) in said.lines[0]
    assert [row["n"] for row in said.rows] == [12, 12, 12]
    poor = replace(found, circuit=replace(found.circuit, value=0.0, controls=(0.5, 0.0)))
    assert any("empty circuit agrees at least as often" in line for line in poor.describe().caveats)
    assert any("2 of 2 random circuits" in line for line in poor.describe().caveats)


def test_a_model_with_one_output_has_none():
    model = model_of("gpt2")
    task = random_task(model, n=3)
    one_output = replace(model, d_vocab_out=1)
    with pytest.raises(BadSetting, match="agreement reads which answer a model finds most likely"):
        agreement(one_output, task, some_circuit(model.graph), ablation="zero")


def test_a_judgement_has_it_and_one_of_before_opens_without_it(tmp_path):
    run = tmp_path / "run"
    common = ["model=toys/induction", "task=induction", "task.n=12", "task.n_heldout=16", "ablation=resample", "progress=false"]
    assert main(["discover", *common, "algorithm=eap", "algorithm.edges=8", "scoring.n_random=1", f"out={run}"]) == 0
    assert main(["score", str(run), "--all"]) == 0
    written = json.loads((run / "judgement.json").read_text())
    page = Page((run / "report.html").read_text("utf-8")).words
    said = validate(TopAgreement, written["agreement"], "here").describe()
    assert said.verdict[0] in written["verdict"]
    assert said.verdict[0] in page
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=12, n_heldout=16, seed=0)
    alone = agreement(model, task, cd.Circuit.load(run / "circuit.json"))
    assert alone.circuit.value == written["agreement"]["circuit"]["value"]
    del written["agreement"]
    (run / "judgement.json").write_text(json.dumps(written))
    assert "Agreement" not in [part.title for part in judgement_parts(written)]
    assert "Agreement" not in Page(write_page(run).read_text("utf-8")).words
