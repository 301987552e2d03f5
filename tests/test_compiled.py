"""Compiled programs: they compute what the program says, and searches find the edges that it has."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import torch

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery import discover
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.known.compiled import PROGRAMS, CompiledCase, build
from circuitdisc.known.compiled.program import one_hot_of
from circuitdisc.known.compiled.truth import ABLATIONS, PlainRun, structural_edges, true_edges
from circuitdisc.metrics import get_metric
from circuitdisc.models.toy import ToyTransformer
from circuitdisc.scoring.truth import Truth
from circuitdisc.tasks.check import check_examples

VARIANTS: dict[str, dict] = {
    "plain": {},
    "turned": {"rotate": 0, "distractors": 2},
    "split": {"rotate": 1, "distractors": 1, "split_embeddings": True},
}
OTHER_SIZES: dict[str, dict] = {
    "induction": {"length": 9, "n_tokens": 10},
    "reverse": {"length": 7, "longest": 12},
    "proportion": {"length": 10, "n_tokens": 2},
    "histogram": {"length": 10, "n_tokens": 3},
    "two_hop": {"chains": 4, "n_tokens": 20},
    "sort": {"length": 8, "n_tokens": 10},
    "balance": {"length": 12},
}

# every edge of the programs, written out by hand, with the ablations that show it
ALL, DATA, NEVER = {"zero", "mean", "resample"}, {"mean", "resample"}, set()
BY_HAND: dict[str, dict[str, set[str]]] = {
    "induction": {
        "input->a0.h0<q>": {"zero"}, "input->a0.h0<k>": {"zero"}, "input->a0.h0<v>": ALL, "a0.h0->a1.h0<k>": ALL,
        "input->a1.h0<q>": {"zero", "mean"}, "input->a1.h0<v>": {"zero", "mean"}, "a1.h0->logits": ALL,
    },
    "reverse": {
        "input->a0.h0<v>": {"zero"}, "a0.h0->m0": {"zero"}, "m0->m1": {"zero"}, "input->m1": {"zero"},
        "m1->a2.h0<q>": {"zero"}, "input->a2.h0<k>": {"zero"}, "input->a2.h0<v>": ALL, "a2.h0->logits": ALL,
    },
    "proportion": {"input->m0": ALL, "m0->a1.h0<v>": ALL, "a1.h0->logits": ALL},
    "histogram": {
        "input->a0.h0<q>": ALL, "input->a0.h0<k>": ALL, "input->a0.h0<v>": {"zero"}, "a0.h0->m0": ALL, "m0->logits": ALL,
    },
    "two_hop": {
        "input->a0.h0<q>": {"zero"}, "input->a0.h0<k>": {"zero"}, "input->a0.h0<v>": ALL,
        "input->a1.h0<q>": ALL, "a0.h0->a1.h0<k>": ALL, "input->a1.h0<v>": ALL,
        # the first token of a chain stands in one pair alone: the first lookup needs no bias on its keys, the second does
        "input->a1.h0<k>": NEVER, "input->a2.h0<k>": {"zero"},
        "a1.h0->a2.h0<q>": ALL, "a0.h0->a2.h0<k>": ALL, "input->a2.h0<v>": ALL, "a2.h0->logits": ALL,
    },
    "sort": {
        "input->a0.h0<q>": ALL, "input->a0.h0<k>": ALL, "input->a0.h0<v>": {"zero"}, "a0.h0->m0": ALL,
        "input->a1.h0<q>": {"zero"}, "m0->a1.h0<k>": ALL, "input->a1.h0<v>": ALL, "a1.h0->logits": ALL,
    },
    "balance": {
        "input->a0.h0<v>": ALL, "a0.h0->m0": ALL, "m0->a1.h0<v>": ALL, "m0->m1": ALL, "a1.h0->m1": ALL, "m1->logits": ALL,
    },
}  # fmt: skip


@cache
def case_of(name: str, variant: str = "plain", **settings) -> CompiledCase:
    """Built once: tests only read it."""
    return build(name, n=20, n_heldout=10, **{**VARIANTS[variant], **settings})


def logits_of(case: CompiledCase, prompt: Iterable[int]) -> torch.Tensor:
    assert isinstance(case.model.module, ToyTransformer)
    return case.model.module(torch.tensor([list(prompt)]))[0]


def whole(names: Iterable[str]) -> set[str]:
    """Edge names with the embeddings as one sender."""
    return {name.replace("tok_embed", "input").replace("pos_embed", "input") for name in names}


@pytest.mark.parametrize("sizes", ["default", "other"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_model_computes_the_program(name, variant, sizes):
    case = case_of(name, variant, **(OTHER_SIZES[name] if sizes == "other" else {}))
    program = case.program
    for example in (*case.task.train, *case.task.heldout):
        assert example.corrupted is not None
        for prompt, answers in ((example.clean, example.answers), (example.corrupted, example.wrong)):
            logits = logits_of(case, prompt)
            for position, (given,) in zip(example.positions, answers, strict=True):
                answer = program.answer(prompt, position)
                assert answer == given
                assert (logits[position] - program.logits[answer]).abs().max() < 1e-9
    assert (program.logits.argmax(-1) == torch.arange(len(program.logits))).all()


@pytest.mark.parametrize("name", PROGRAMS)
def test_float32_models_answer_alike(name):
    case = case_of(name, "turned", dtype="float32")
    for example in case.task.heldout:
        top = logits_of(case, example.clean)[list(example.positions)].argmax(-1)
        assert top.tolist() == [answer for (answer,) in example.answers]


def test_reverse_works_for_all_lengths():
    case = case_of("reverse", "turned", longest=9)
    for length in range(1, 10):
        prompt = (0, *range(1, length + 1))
        assert logits_of(case, prompt).argmax(-1).tolist()[1:] == [case.program.answer(prompt, p) for p in range(1, length + 1)]


def test_proportion_balance_and_histogram_answer_at_every_position():
    for name, start in (("proportion", 0), ("balance", 0), ("histogram", 1)):
        case = case_of(name, "turned")
        for example in case.task.train:
            top = logits_of(case, example.clean).argmax(-1).tolist()[start:]
            assert top == [case.program.answer(example.clean, p) for p in range(start, len(example))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_truth_is_that_written_by_hand(name):
    by_hand = BY_HAND[name]
    for variant in VARIANTS:
        truth = case_of(name, variant).truth
        assert whole(truth.structural) == set(by_hand)
        for ablation in ABLATIONS:
            shown = {edge for edge, ablations in by_hand.items() if ablation in ablations}
            assert whole(truth.edges(ablation)) == shown
            assert truth.edges(ablation) <= truth.differing[ablation] <= truth.structural
            assert whole(truth.hidden(ablation)) == set(by_hand) - shown


def test_values_that_nobody_attends_to_differ_and_do_not_show():
    truth = case_of("induction").truth
    assert truth.differing["resample"] - truth.edges("resample") == {"input->a1.h0<q>", "input->a1.h0<v>"}
    assert "input->a0.h0<q>" not in truth.differing["resample"]  # a position is the same in every prompt


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("variant", ["turned", *(pytest.param(name, marks=pytest.mark.long) for name in ("plain", "split"))])
@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_and_acdc_find_the_true_edges(name, variant, ablation):
    case = case_of(name, variant)
    graph, truth = case.model.graph, case.truth.edges(ablation)
    scores = discover(case.model, case.task, "exact", ablation=ablation).edge_scores
    assert scores is not None
    moved = {graph.edge_name(*place) for place in np.argwhere(np.nan_to_num(np.abs(scores)) > 1e-9)}
    assert moved == truth  # precision and recall 1; cutting any other edge alone changes nothing
    found = discover(case.model, case.task, "acdc", ablation=ablation, threshold=1e-3).circuit
    assert set(found.edge_names()) == truth


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_true_edges_together_are_the_whole_program(name, ablation):
    case = case_of(name, "turned")
    graph = case.model.graph
    masks = {"true": Circuit.from_edges(graph, case.truth.edges(ablation)).mask, "full": graph.edge_mask}
    patching = Patching(case.model, Ablation(ablation), case.task.train)
    values = patching.evaluate(case.task.heldout, masks, [get_metric("logit_diff")])
    assert (values["true"]["logit_diff"] - values["full"]["logit_diff"]).abs().max() < 1e-9


@pytest.mark.parametrize("name", PROGRAMS)
def test_plain_run_is_the_model(name):
    case = case_of(name, "split")
    assert isinstance(case.model.module, ToyTransformer)
    tokens = torch.tensor([example.clean for example in case.task.train])
    logits = PlainRun(case.model.module, case.model.graph).run(tokens)[1]
    assert (logits - case.model.module(tokens)).abs().max() < 1e-9


def test_a_new_read_is_a_new_edge():
    case = build("induction", **VARIANTS["turned"])
    toy, graph = case.model.module, case.model.graph
    assert isinstance(toy, ToyTransformer)
    weights = dict(toy.named_parameters())
    weights["unembed.W_U"].data += 1e-3 * weights["blocks.0.attn.W_O"][0, :16].T  # logits read the previous token
    truth = true_edges(toy, graph, case.task.train)
    assert truth.structural - case.truth.structural == {"a0.h0->logits"}
    assert "a0.h0->logits" in truth.edges("mean")


def test_distractors_write_what_only_they_read():
    case = case_of("sort", "turned")
    toy, graph = case.model.module, case.model.graph
    assert isinstance(toy, ToyTransformer)
    plain = PlainRun(toy, graph)
    sent, _ = plain.run(torch.tensor([example.clean for example in case.task.train]))
    for name in ("a0.h1", "a0.h2", "a1.h1", "a1.h2"):
        written = sent[graph.sender_index[name]]
        assert written.std(0).max() > 0.1  # they are not idle: what they write varies over the examples
        for receiver in graph.receivers:
            read = (written @ plain.read_matrix(receiver)).abs().max()
            is_distractor = receiver.node.kind == "head" and receiver.node.head > 0
            assert (read > 1e-3) == is_distractor
    assert not any(".h1" in edge or ".h2" in edge for edge in structural_edges(plain))


def test_rotation_leaves_no_axis_free():
    toy = case_of("proportion", "turned").model.module
    assert (dict(toy.named_parameters())["embed.W_E"].abs() > 1e-6).all()


@pytest.mark.parametrize("name", PROGRAMS)
def test_examples_fit_the_model(name):
    case = case_of(name)
    examples = (*case.task.train, *case.task.heldout)
    check_examples(examples, [str(index) for index in range(len(examples))], case.model)
    assert len({example.clean for example in examples}) == len(examples) == 30
    assert build(name, n=20, n_heldout=10).task.train == case.task.train
    assert case_of(name, seed=1).task.train != case.task.train


def test_one_hot_of_is_exact_whatever_the_order():
    values = [0.5, 0.125, 1.0, 0.2]
    part = one_hot_of("x", values, "y")
    x = torch.tensor([[*values, 0.0]], dtype=torch.float64).T
    classes = (x @ part.reads["x"] + part.bias).relu() @ part.out
    expected = torch.cat([torch.eye(4), torch.zeros(1, 4)]).double()
    assert (classes - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("inducton", {}, UnknownName, "induction"),
        ("sort", {"lenght": 4}, UnknownName, "length"),
        ("sort", {"dtype": "float99"}, UnknownName, "float"),
        ("sort", {"distractors": -1}, BadSetting, "distractors"),
        ("sort", {"n": 0}, BadSetting, "n=0"),
        ("sort", {"length": 11}, BadSetting, "n_tokens=12"),
        ("induction", {"length": 4}, BadSetting, "at least 5"),
        ("two_hop", {"n_tokens": 5}, BadSetting, "at least 7"),
        ("reverse", {"length": 9}, BadSetting, "longest=7"),
        ("histogram", {"n_tokens": 2}, BadSetting, "at least 3"),
        ("balance", {"length": 7}, BadSetting, "even"),
    ],
)
def test_settings_that_cannot_be_used(name, settings, error, says):
    with pytest.raises(error, match=says):
        build(name, **settings)


def test_true_edges_make_a_truth():
    case = case_of("sort", "split")
    edges = {ablation: tuple(sorted(names)) for ablation, names in case.truth.showing.items()}
    truth = Truth(case.model.graph, edges, case.task.name)
    for ablation in ABLATIONS:
        assert set(truth.circuit(ablation).edge_names()) == case.truth.edges(ablation)


def test_unknown_ablation():
    with pytest.raises(UnknownName, match="resample"):
        case_of("sort").truth.edges("resampel")
