"""Trained cases: they do what their programs say, through the edges that their programs have and no others."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.files import read_json
from circuitdisc.known.compiled import CompiledCase, CompiledTruth
from circuitdisc.known.siit.case import CASES, RESULTS, SiitCase, load, program_of
from circuitdisc.known.siit.edge_run import Carried, EdgeRun
from circuitdisc.known.siit.program import draw_prompts, held_out
from circuitdisc.known.siit.training import Trainer
from circuitdisc.known.siit.truth import SiitTruth
from circuitdisc.metrics import get_metric
from circuitdisc.models.load import cut_toy
from circuitdisc.models.toy import ToyTransformer
from circuitdisc.shipped import described_models
from circuitdisc.tasks.check import check_example

LEAST_INTERCHANGE = {"modular_sum": 0.95}  # the one case that falls short of .97, as docs/siit.md says
SCRIPTS = Path(__file__).parent.parent / "scripts"

# every true edge that resample ablation shows, written out by hand
BY_HAND: dict[str, set[str]] = {
    "induction": {
        "input->a0.h2<v>", "a0.h2->a1.h1<k>", "input->a1.h1<q>", "input->a1.h1<v>", "a1.h1->logits",
    },
    "pointers": {"input->a0.h0<q>", "input->a0.h0<v>", "a0.h0->a1.h3<q>", "input->a1.h3<v>", "a1.h3->logits"},
    "copy_or_reverse": {"input->a0.h1<v>", "a0.h1->m0", "m0->a1.h2<q>", "input->a1.h2<v>", "a1.h2->logits"},
    "histogram": {"input->a0.h3<q>", "input->a0.h3<k>", "a0.h3->m1", "m1->logits"},
    "majority": {"input->m0", "m0->a1.h2<v>", "a1.h2->m1", "m1->logits"},
    "balance": {"input->a0.h0<v>", "a0.h0->m0", "m0->a1.h2<v>", "a1.h2->m1", "a0.h0->m1", "m1->logits"},
    "repeats": {"input->a0.h1<v>", "a0.h1->m1", "input->m1", "m1->logits"},
    "modular_sum": {
        "input->a0.h1<v>", "input->a0.h3<v>", "a0.h1->m0", "a0.h3->m0", "m0->m1", "input->m1", "m1->logits",
    },
}  # fmt: skip


def depths(prompt):
    return np.cumsum([{0: 0, 1: 1, 2: -1}[token] for token in prompt])


# the answers once more, in plain Python
ANSWERS = {
    "induction": lambda x, p: x[x.index(x[p]) + 1],
    "pointers": lambda x, p: x[x[x[p]]],
    "copy_or_reverse": lambda x, p: [x[1:], x[:0:-1]][x[0]][p - 1],
    "histogram": lambda x, p: x.count(x[p]),
    "majority": lambda x, p: int(sum(token in (1, 3, 5) for token in x) >= 4),
    "balance": lambda x, p: int(min(depths(x)) >= 0 and depths(x)[-1] == 0),
    "repeats": lambda x, p: int(x[p] == x[p - 1]),
    "modular_sum": lambda x, p: (x[1] + x[2] + x[7]) % 3,
}


@cache
def case_of(name: str) -> SiitCase:
    return load(name, n=30, n_heldout=60, seed=3)


def results_of(name: str) -> dict:
    return read_json(RESULTS)["cases"][name]


@cache
def values_of(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Accuracy and logit difference of the model, its true edges, each true edge missing, and all other edges missing."""
    case = case_of(name)
    graph, true = case.model.graph, case.truth.edges("resample")
    masks = {"full": graph.edge_mask, "true": Circuit.from_edges(graph, true).mask}
    masks["others"] = graph.edge_mask & ~masks["true"]
    for edge in true:
        masks[edge] = graph.edge_mask.copy()
        masks[edge][graph.parse_edge(edge)] = False
    patching = Patching(case.model, Ablation("resample"), case.task.train)
    metrics = [get_metric("accuracy"), get_metric("logit_diff")]
    found = patching.evaluate(case.task.heldout, masks, metrics)
    return {mask: {metric: one.numpy() for metric, one in by_metric.items()} for mask, by_metric in found.items()}


# --- programs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_programs_give_the_answers_of_plain_python(name):
    program = program_of(name)
    for prompt in program.draw(np.random.default_rng(0), 50).tolist():
        for position in program.positions:
            assert program.answer(prompt, position) == ANSWERS[name](prompt, position)


@pytest.mark.parametrize("name", CASES)
def test_examples_are_a_task_of_the_model(name):
    case = case_of(name)
    for example in case.task.train + case.task.heldout:
        check_example(example)
    assert (len(case.task.train), len(case.task.heldout)) == (30, 60)
    for example in case.task.train:
        assert example.corrupted is not None
        for position, (answer,), (wrong,) in zip(example.positions, example.answers, example.wrong, strict=True):
            assert answer == ANSWERS[name](list(example.clean), position) != wrong
            assert wrong == ANSWERS[name](list(example.corrupted), position)


def test_some_cases_are_superposed():
    assert sum(program_of(name).superposed for name in CASES) >= 3


def test_held_out_prompts_are_never_trained_on():
    program, rng = program_of("majority"), np.random.default_rng(0)
    assert not held_out(draw_prompts(program, rng, 300, trained=True).numpy()).any()
    new = draw_prompts(program, rng, 300, trained=False).numpy()
    assert held_out(new).all()
    assert len(np.unique(new, axis=0)) > 200


# --- truth ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_truth_is_that_written_by_hand(name):
    truth = case_of(name).truth
    assert truth.edges("resample") == BY_HAND[name]
    assert truth.hidden("resample") == truth.structural - BY_HAND[name]
    as_truth = cd.Truth(case_of(name).model.graph, {kind: tuple(names) for kind, names in truth.showing.items()}, truth.name)
    assert set(as_truth.circuit("resample").edge_names()) == BY_HAND[name]


def test_with_split_embeddings_tokens_and_positions_are_apart():
    case = load("induction", n=8, n_heldout=8, split_embeddings=True)
    assert case.model.graph.split_embeddings
    assert case.truth.edges("resample") == {edge.replace("input", "tok_embed") for edge in BY_HAND["induction"]}
    assert case.truth.hidden("resample") == {"pos_embed->a0.h2<q>", "pos_embed->a0.h2<k>"}


def test_a_truth_refuses_what_it_does_not_hold_for():
    truth = SiitTruth(frozenset({"input->logits"}), {"resample": frozenset({"input->logits"})}, "siit/one")
    assert truth.ablations == ("resample",)
    with pytest.raises(BadSetting, match=r"holds for resample.* says nothing of zero"):
        truth.edges("zero")
    with pytest.raises(UnknownName, match="resample"):
        truth.hidden("resampled")


def test_cases_look_like_compiled_ones():
    assert set(CompiledCase.__dataclass_fields__) <= set(SiitCase.__dataclass_fields__)
    assert {"structural", "showing", "edges", "hidden"} <= set(dir(SiitTruth)) | set(SiitTruth.__dataclass_fields__)
    assert {"structural", "showing", "edges", "hidden"} <= set(dir(CompiledTruth)) | set(CompiledTruth.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"name": "inductoin"}, UnknownName, "induction"),
        ({"name": "induction", "dtype": "float12"}, UnknownName, "float"),
        ({"name": "induction", "n": 0}, BadSetting, "n=0"),
    ],
)
def test_wrong_settings_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        load(**settings)


# --- shipped weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_model_does_its_task(name):
    assert values_of(name)["full"]["accuracy"].mean() >= min(0.99, results_of(name)["accuracy"]) - 0.02


@pytest.mark.parametrize("name", CASES)
def test_the_true_edges_alone_do_the_task_and_all_others_do_nothing(name):
    values, found = values_of(name), results_of(name)["ablated"]["resample"]
    assert values["true"]["accuracy"].mean() >= found["accuracy"] - 0.03
    assert values["others"]["accuracy"].mean() <= 0.35  # the corrupted prompt's answer is read instead
    gap = np.abs(values["true"]["logit_diff"] - values["full"]["logit_diff"]).mean()
    assert gap <= 0.25 * values["full"]["logit_diff"].mean()


@pytest.mark.parametrize("name", CASES)
def test_every_true_edge_counts(name):
    values, found = values_of(name), results_of(name)["ablated"]["resample"]
    for edge in BY_HAND[name]:
        moved = np.abs(values[edge]["logit_diff"] - values["full"]["logit_diff"]).mean()
        assert moved >= 0.5 * found["smallest_true"]["logit_diff"] > found["largest_other"]["logit_diff"] / 2, edge


@pytest.mark.parametrize("name", CASES)
def test_the_record_is_good_and_complete(name):
    found = results_of(name)
    assert found["accuracy"] >= 0.99
    assert min(row["accuracy"] for row in found["interchange"].values()) >= LEAST_INTERCHANGE.get(name, 0.97)
    assert found["interchange"].keys() == program_of(name).nodes.keys()
    assert "resample" in found["ablations"]
    assert "train_siit.py" in found["training"]["command"]


def test_the_models_are_listed():
    lines = dict(described_models())
    for name in CASES:
        assert "TransformerLens toy, " in lines[f"siit/{name}"]
        assert f"accuracy on {name} " in lines[f"siit/{name}"]


@pytest.mark.parametrize("name", ["induction", "histogram"])
def test_shipped_nodes_play_their_variables(name):
    case = case_of(name)
    scores = cd.interchange_accuracy(case.model, case.causal, case.alignment, case.task.heldout, n_sources=3)
    assert scores.worst.value >= 0.95
    assert scores.worst.effective is not None
    assert scores.worst.effective >= 0.9


def test_a_search_finds_the_circuit():
    case = case_of("induction")
    found = cd.discover(case.model, case.task, "exact", ablation="resample")
    truth = cd.Truth(case.model.graph, {"resample": tuple(case.truth.edges("resample"))}, "induction")
    assert (cd.against_truth(found, truth).edges.auroc or 0) >= 0.95


# --- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pointers", "histogram"])
def test_the_edge_run_is_the_toy_and_the_circuit_run(name):
    program = program_of(name)
    graph, toy = program.graph, ToyTransformer(program.config, seed=1).double()
    rng = np.random.default_rng(0)
    examples = program.examples(torch.from_numpy(program.draw(rng, 20)))
    tokens, other = (torch.tensor([getattr(one, kind) for one in examples]) for kind in ("clean", "corrupted"))
    with torch.no_grad():
        plain, ablated = EdgeRun(toy, graph, tokens), EdgeRun(toy, graph, other).senders
        torch.testing.assert_close(plain.logits, toy(tokens), rtol=0, atol=1e-12)
        kept = graph.edge_mask & (rng.random(graph.edge_mask.shape) < 0.7)
        cut = torch.from_numpy(graph.edge_mask & ~kept)
        carried = Carried(ablated, cut.expand(len(tokens), -1, -1), ablated)
        run = EdgeRun(toy, graph, tokens, carried)
        # the same cuts as swaps at every position
        swaps = {(int(r), int(s)): torch.ones(tokens.shape, dtype=torch.bool) for r, s in np.argwhere(cut.numpy())}
        same = EdgeRun(toy, graph, tokens, Carried(ablated, torch.zeros_like(carried.removed), ablated, swaps))
    torch.testing.assert_close(run.logits, same.logits, rtol=0, atol=1e-12)
    patching = Patching(cut_toy(toy), Ablation("resample"), examples)
    (chunk,) = patching.chunks(examples)
    expected = patching.circuit_logits(chunk, kept)
    torch.testing.assert_close(run.logits[chunk.batch.reads], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_shipped_weights_are_at_the_bottom_of_the_losses(name):
    trainer = Trainer(program_of(name), seed=5)
    tokens = draw_prompts(trainer.program, np.random.default_rng(0), 256, trained=False)
    before = trainer.losses(tokens)
    trainer.toy.load_state_dict(case_of(name).model.module.state_dict())
    after = trainer.losses(tokens)
    assert after.behaviour < 0.1 * before.behaviour
    assert after.interchange < 0.2 * before.interchange


def test_training_lowers_the_losses_and_repeats_itself(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    train = __import__("train_siit").train
    trainers = [train(program_of("majority"), 30, 0, batch=32, progress=False) for _ in range(2)]
    for first, second in zip(*(trainer.toy.parameters() for trainer in trainers), strict=True):
        assert torch.equal(first, second)
    tokens = draw_prompts(trainers[0].program, np.random.default_rng(1), 256, trained=True)
    assert trainers[0].losses(tokens).behaviour < Trainer(program_of("majority"), 0).losses(tokens).behaviour
    assert all(torch.isfinite(weight).all() for weight in trainers[0].parameters)
    for name in ("train_siit", "measure_siit"):
        sys.modules.pop(name)
