"""Soft masks against the slow reference and against attribution; hard concrete's maths; the algorithms that learn masks."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import TOYS, model_of
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.discovery import hard_concrete, mask_training
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.edge_pruning import EdgeMasks
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.discovery.soft_topk import SoftTopK, soft_top_k
from circuitdisc.discovery.subnetwork_probing import PricedMasks
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.masked_run import MaskedRun, MaskedRuns, masked_values
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadSetting, UnknownName
from circuitdisc.metrics import get_metric
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", *TOYS]
KINDS = ["zero", "mean", "resample"]
LEARNED = ["edge_pruning", "subnetwork_probing", "soft_topk"]


def random_mask(model, seed=0, hard=True):
    drawn = np.random.default_rng(seed).random(model.graph.edge_mask.shape)
    return torch.from_numpy(model.graph.edge_mask * ((drawn < 0.6) if hard else drawn))


# --- the masked run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_zeros_and_ones_is_the_run_of_the_circuit(family, kind: Any):
    model = model_of(family)
    examples = random_examples(model, 5)
    (chunk,) = Patching(model, Ablation(kind), examples).hold(examples)
    mask = random_mask(model)
    run = MaskedRun(model.components, model.graph, chunk, mask.double())
    found = logits_at(model.components, run.residual, chunk.batch.reads)
    assert float((found - masked_run(model, chunk, mask.numpy())).abs().max()) < 1e-9


@pytest.mark.parametrize(("kind", "metric"), list(zip(KINDS, ["logit_diff", "log_prob", "prob_diff"], strict=True)))
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "attention_only", "bidirectional"])
def test_the_gradient_at_the_full_mask_is_minus_the_attribution(family, kind: Any, metric):
    """d metric / d m = (clean - ablated) . gradient; an attribution is the change when the edge is cut."""
    model, measure = model_of(family), get_metric(metric)
    examples, edges = random_examples(model, 5), model.graph.edge_mask
    runs = MaskedRuns(model, Ablation(kind), examples, measure, batch=5)
    gradient = runs.measure(0, torch.from_numpy(edges.copy()).double()).gradient.numpy()
    scores = Attribution(model, Ablation(kind), examples, measure, gradient=Gradient(at_full=True)).edges_at_full()
    np.testing.assert_allclose(gradient[edges], -scores[edges], atol=1e-9 * np.abs(scores[edges]).max())
    assert not gradient[~edges].any()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "parallel"])
def test_the_gradient_at_a_soft_mask_is_that_of_small_steps(family):
    model, metric = model_of(family), get_metric("kl")
    examples, mask = random_examples(model, 3), random_mask(model, hard=False)
    runs = MaskedRuns(model, Ablation("resample"), examples, metric, batch=3)
    gradient = runs.measure(0, mask).gradient
    step = 1e-5
    for receiver, sender in np.argwhere(model.graph.edge_mask)[::61]:
        moved = [mask.clone(), mask.clone()]
        moved[0][receiver, sender] += step
        moved[1][receiver, sender] -= step
        up, down = (runs.measure(0, one).value for one in moved)
        assert float(gradient[receiver, sender]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype):
    examples = random_examples(model_of("llama"), 5)
    mask = random_mask(model_of("llama"), hard=False)

    def gradient(dtype):
        runs = MaskedRuns(model_of("llama", dtype), Ablation("resample"), examples, get_metric("logit_diff"), batch=5)
        return runs.measure(0, mask).gradient

    wanted, found = gradient(torch.float64), gradient(dtype)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < (1e-4 if dtype == torch.float32 else 0.1)


def test_one_row_serves_all_receivers():
    model, metric = model_of("llama"), get_metric("log_prob")
    examples = random_examples(model, 4)
    (chunk,) = Patching(model, Ablation("mean"), examples).hold(examples)
    row = random_mask(model, hard=False)[-1:].requires_grad_()
    edges = torch.from_numpy(model.graph.edge_mask.copy())
    found = masked_values(model.components, model.graph, chunk, row, metric)
    wanted = masked_values(model.components, model.graph, chunk, row * edges, metric)
    torch.testing.assert_close(found, wanted)
    of_row, of_edges = (torch.autograd.grad(values.sum(), row)[0] for values in (found, wanted))
    torch.testing.assert_close(of_row, of_edges)


def test_pieces_of_a_mini_batch_add_up_to_it(monkeypatch):
    model, examples = model_of("gpt2"), random_examples(model_of("gpt2"), 7)
    mask, metric = random_mask(model, hard=False), get_metric("kl")
    whole = MaskedRuns(model, Ablation("mean"), examples, metric, batch=7)
    monkeypatch.setattr("circuitdisc.engine.masked_run.examples_in_piece", lambda *args: 2)
    split = MaskedRuns(model, Ablation("mean"), examples, metric, batch=7)
    assert ([len(pieces) for pieces in whole.batches], [len(pieces) for pieces in split.batches]) == ([1], [4])
    one, other = whole.measure(0, mask), split.measure(0, mask)
    assert one.value == pytest.approx(other.value, rel=1e-12)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-9, atol=1e-12)
    batches = MaskedRuns(model, Ablation("mean"), examples, metric, batch=3)
    assert [chunk.batch.n_examples for (chunk, *_) in batches.batches] == [2, 2, 1]
    values = [batches.measure(index, mask).value * n for index, n in enumerate((3, 3, 1))]
    assert sum(values) / 7 == pytest.approx(one.value, rel=1e-12)
    assert batches.cost.backward_runs == pytest.approx(1)


# --- hard concrete -----------------------------------------------------------------------------------------------------


def test_the_probability_to_be_kept_is_that_of_many_draws():
    logits = torch.tensor([-4.0, -1.6, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)
    draws = hard_concrete.sample(logits.expand(200_000, -1), np.random.default_rng(0))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert (draws == 0).any()
    assert (draws == 1).any()
    torch.testing.assert_close((draws > 0).double().mean(0), hard_concrete.keep_probability(logits), atol=0.004, rtol=0)
    assert float(hard_concrete.keep_probability(torch.tensor(hard_concrete.OFFSET))) == pytest.approx(0.5)
    assert hard_concrete.deterministic(logits).tolist() == pytest.approx([0, 0.102, 0.353, 0.5, 0.777, 1], abs=1e-3)


def test_gradients_of_draws_and_of_probabilities_are_those_of_small_steps():
    logits = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64, requires_grad=True)
    for function in (lambda x: hard_concrete.sample(x, np.random.default_rng(3)), hard_concrete.keep_probability):
        (gradient,) = torch.autograd.grad(function(logits).sum(), logits)
        slope = (function(logits + 1e-6) - function(logits - 1e-6)) / 2e-6
        torch.testing.assert_close(gradient, slope.detach(), atol=1e-6, rtol=1e-5)
    assert (torch.autograd.grad(hard_concrete.keep_probability(logits).sum(), logits)[0] > 0).all()


def test_scores_are_minus_the_logarithm_of_being_dropped_and_do_not_saturate():
    a, b = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    p, q = hard_concrete.keep_probability(a), hard_concrete.keep_probability(b)
    torch.testing.assert_close(hard_concrete.keep_score(a), -(1 - p).log())
    torch.testing.assert_close(hard_concrete.keep_score(a, b), -(1 - p * q).log())
    far = hard_concrete.keep_score(torch.tensor([-400.0, -40.0, 40.0, 400.0], dtype=torch.float64))
    assert (far.diff() > 0).all()
    assert (far > 0).all()


# --- soft top-k --------------------------------------------------------------------------------------------------------


def test_soft_top_k_sums_to_k_with_the_gradient_through_its_threshold():
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=30)).requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=30))
    for k in (1, 7, 29):
        mask = soft_top_k(scores, k, 0.5)
        assert float(mask.detach().sum()) == pytest.approx(k, rel=1e-9)
        assert (mask.argsort() == scores.argsort()).all()
        (gradient,) = torch.autograd.grad((mask * weights).sum(), scores)
        assert float(gradient.sum()) == pytest.approx(0, abs=1e-9)  # a shift of all scores changes nothing
        for index in (0, 11, 29):
            step = torch.zeros(30, dtype=torch.float64)
            step[index] = 1e-6
            up, down = (float((soft_top_k(scores.detach() + sign * step, k, 0.5) * weights).sum()) for sign in (1, -1))
            assert float(gradient[index]) == pytest.approx((up - down) / 2e-6, abs=1e-6)
    assert (soft_top_k(scores, 30, 0.5) == 1).all()
    hard = soft_top_k(scores, 7, 1e-4)
    assert (hard > 0.5).sum() == 7


# --- masks as the algorithms have them -----------------------------------------------------------------------------------


def test_edge_masks_count_their_edges_with_their_nodes():
    graph = model_of("gpt2").graph
    settings: Any = {"rate": 0.1, "multiplier_rate": 1.0, "dtype": torch.float64}
    masks = EdgeMasks(graph, 0.1, 100, nodes=True, **settings)
    with torch.no_grad():
        masks.parameters["edges"].uniform_(-2, 2)
        masks.parameters["nodes"].uniform_(-2, 2)
    draws = torch.stack([masks.draw(np.random.default_rng(seed)) for seed in range(400)])
    assert masks.n_edges() == pytest.approx(float((draws > 0).double().sum((1, 2)).mean()), rel=0.02)
    edges = torch.from_numpy(graph.edge_mask.copy())
    kept = (draws.detach() > 0).double().mean(0)[edges]
    expected = 1 - (-masks.scores().detach()[edges]).exp()
    assert float((kept - expected).abs().max()) < 0.12
    assert not draws[:, ~graph.edge_mask].any()


def test_the_multipliers_climb_until_the_target_is_reached():
    """Without any loss the share of edges goes to its target and stays there."""
    graph = model_of("gpt2").graph
    masks = EdgeMasks(graph, 0.2, 100, nodes=False, rate=0.3, multiplier_rate=0.02)
    optimizer = torch.optim.Adam(masks.groups())
    for step in range(400):
        optimizer.zero_grad()
        masks.penalty(step).backward()
        optimizer.step()
    assert masks.n_edges() / graph.n_edges == pytest.approx(0.2, abs=0.05)


def test_node_masks_keep_edges_with_both_their_ends():
    graph = model_of("gpt2").graph
    masks = PricedMasks(graph, "node", 1.0, 0.1, torch.float64)
    gone = graph.sender_index["a1.h2"]
    with torch.no_grad():
        masks.logits[gone] = -5.0
    kept = masks.kept()
    assert not kept[:, gone].any()
    assert not kept[list(graph.node_receivers["a1.h2"])].any()
    assert (
        kept.sum()
        == (graph.edge_mask & kept).sum()
        == cd.Circuit.from_heads(
            graph, [node.name for node in graph.senders if node.kind == "head" and node.name != "a1.h2"]
        ).n_edges
    )
    scores = mask_training.to_scores(graph, masks.scores())
    assert (scores[kept] > np.nanmax(scores[graph.edge_mask & ~kept])).all()
    assert masks.draw(np.random.default_rng(0)).shape == (1, graph.n_senders)


def test_soft_top_k_masks_have_the_size_drawn():
    graph = model_of("gpt2").graph
    masks = SoftTopK(graph, smallest=3, temperature=0.5, noise=1.0, rate=0.1, dtype=torch.float64)
    sizes = []
    for seed in range(30):
        mask = masks.draw(np.random.default_rng(seed)).detach()
        assert float(mask.sum()) == pytest.approx(masks.size)
        assert not mask[~torch.from_numpy(graph.edge_mask.copy())].any()
        sizes.append(masks.size)
    assert min(sizes) < 10
    assert max(sizes) > 100


# --- the algorithms ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def induction():
    model = cd.load_model("toys/induction")
    return model, cd.load_task("induction", model, n=20, n_heldout=50, length=8)


TEXTBOOK = {"input->a0.h1<v>", "a0.h1->a1.h0<k>", "a0.h1->a1.h1<k>", "a1.h0->logits", "a1.h1->logits"}
ON_THE_TOY = {
    "edge_pruning": {"edges": 6, "steps": 100, "warm_up": 0.3},
    "subnetwork_probing": {"edges": 6, "regularisation": 0.2, "steps": 100},
    "soft_topk": {"edges": 6, "steps": 100, "smallest": 3},
}


@pytest.mark.parametrize("algorithm", LEARNED)
def test_the_induction_toy_is_found(induction, algorithm):
    model, task = induction
    found = cd.discover(model, task, algorithm, ablation="resample", batch=10, **ON_THE_TOY[algorithm])
    assert set(found.circuit.edge_names()) >= TEXTBOOK
    assert found.edge_scores is not None
    assert np.nanmin(found.edge_scores) >= 0  # so that `top_k` by absolute value ranks them
    assert found.top_k(6) == found.circuit
    assert found.circuit.n_edges <= 6
    faithfulness = cd.score(model, task, found.circuit, n_random=0).get("faithfulness").value
    assert faithfulness is not None
    assert 0.9 < faithfulness < 1.1
    assert [line["step"] for line in found.trace] == [50, 100]
    assert set(found.trace[-1]) == {"step", "loss", "edges"}
    assert found.cost.circuit_runs >= 100
    assert found.cost.backward_runs == pytest.approx(50)  # two mini-batches of 10 an epoch
    if algorithm == "edge_pruning":
        assert found.trace[-1]["edges"] == pytest.approx(6, abs=2.5)
        assert found.trace[0]["edges"] > 8


@pytest.mark.parametrize("algorithm", ["edge_pruning", "soft_topk"])
def test_masks_begin_in_the_order_of_the_scores_that_they_start_from(induction, algorithm):
    """After one small step the order is still that of |score|; without a start all masks are nearly alike."""
    model, task = induction
    scores = cd.discover(model, task, "eap_ig", ablation="resample").edge_scores
    few: dict[str, Any] = {"ablation": "resample", "edges": 6, "steps": 1, "learning_rate": 1e-4}
    if algorithm == "edge_pruning":
        few["node_masks"] = False
    found = cd.discover(model, task, algorithm, start="eap_ig", **few)
    edges = model.graph.edge_mask
    assert scores is not None
    assert found.edge_scores is not None
    order = [np.argsort(np.abs(values[edges]), kind="stable").tolist() for values in (scores, found.edge_scores)]
    assert order[0] == order[1]
    alike = cd.discover(model, task, algorithm, **few)
    assert alike.edge_scores is not None
    assert np.ptp(alike.edge_scores[edges]) < 0.01 * np.ptp(found.edge_scores[edges])
    assert found.cost.model_runs > alike.cost.model_runs + 4  # the attribution's are counted


def test_a_start_that_cannot_be_had_gets_a_sentence(induction):
    model, task = induction
    with pytest.raises(UnknownName, match="eap_ig"):
        cd.discover(model, task, "edge_pruning", ablation="resample", start="eap_gi")
    with pytest.raises(BadSetting, match=r"ceap follows .* Or set start=exact"):
        cd.discover(model, task, "edge_pruning", ablation="mean", start="ceap")


def test_probing_without_a_size_keeps_what_its_masks_keep(induction):
    model, task = induction
    settings: Any = {"steps": 100, "ablation": "resample", "batch": 10}
    cheap = cd.discover(model, task, "subnetwork_probing", regularisation=0.03, **settings)
    dear = cd.discover(model, task, "subnetwork_probing", regularisation=0.2, **settings)
    assert set(dear.circuit.edge_names()) >= TEXTBOOK
    assert dear.circuit.n_edges <= cheap.circuit.n_edges < model.graph.n_edges
    nodes = cd.discover(model, task, "subnetwork_probing", unit="node", regularisation=0.2, **settings)
    assert set(nodes.circuit.heads()) <= {"a0.h1", "a1.h0", "a1.h1"}
    assert "a0.h1" in nodes.circuit.heads()
    assert nodes.node_scores is not None
    assert nodes.node_scores[model.graph.sender_index["a0.h0"]] == nodes.node_scores.min()
    small = cd.discover(model, task, "subnetwork_probing", unit="node", regularisation=0.2, edges=18, **settings)
    assert small.circuit <= nodes.circuit
    assert small.circuit.n_edges <= 18


def run(algorithm, model, task, journal=None, seed=0, steps=70, **settings):
    with closing(journal or Journal()) as journal:
        context = SearchContext(metric="logit_diff", seed=seed, journal=journal)
        return ALGORITHMS[algorithm].function(model, task, Ablation("resample"), context, steps=steps, batch=3, **settings)


@pytest.mark.parametrize("algorithm", LEARNED)
def test_a_killed_run_resumes_to_the_same_scores_bit_for_bit(algorithm, tmp_path):
    model = model_of("attention_only")
    task = random_task(model, 6)
    (tmp_path / "whole").mkdir()
    settings: dict[str, Any] = {} if algorithm == "subnetwork_probing" else {"start": "eap"}
    whole = run(algorithm, model, task, Journal(tmp_path / "whole" / "journal.jsonl"), **settings)
    path = tmp_path / "killed" / "journal.jsonl"
    path.parent.mkdir()

    class Killed(Exception):
        pass

    def kill(*args: Any) -> float:
        if args[-1] == 60:
            raise Killed
        return step(*args)

    step = mask_training._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_training, "_step", kill)
        with pytest.raises(Killed):
            run(algorithm, model, task, Journal(path), **settings)
    assert [file.name for file in path.parent.glob("mask*")] == ["mask_state_50.safetensors"]
    again = run(algorithm, model, task, Journal(path), **settings)
    np.testing.assert_array_equal(again.edge_scores, whole.edge_scores)
    assert again.circuit == whole.circuit
    assert again.trace == whole.trace
    assert path.read_text() == (tmp_path / "whole" / "journal.jsonl").read_text()
    other = run(algorithm, model, task, seed=1, **settings)
    assert other.edge_scores is not None
    assert whole.edge_scores is not None
    assert not np.array_equal(other.edge_scores, whole.edge_scores, equal_nan=True)


def test_a_lost_damaged_older_or_foreign_state_is_a_sentence(tmp_path):
    model = model_of("attention_only")
    task = random_task(model, 6)
    path, state = tmp_path / "journal.jsonl", tmp_path / "mask_state_50.safetensors"
    run("edge_pruning", model, task, Journal(path), steps=50)
    with pytest.raises(BadFile, match=r"mask_state_50\.safetensors is not the state of this search: .*scores"):
        run("soft_topk", model, task, Journal(path))
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadFile, match=r"not the state of step 50 of this search \(mask_state_50\S+ has other bytes than were"):
        run("edge_pruning", model, task, Journal(path))
    state.unlink()
    with pytest.raises(BadFile, match=r"mask_state_50\.safetensors .*\(it is missing\)"):
        run("edge_pruning", model, task, Journal(path))
    state.with_suffix(".npz").write_bytes(b"")
    with pytest.raises(
        BadFile, match=r"mask_state_50\.npz is the state of a search that an older circuitdisc began .*go on there"
    ):
        run("edge_pruning", model, task, Journal(path))


def test_loss_metric_raises_the_metric(induction):
    model, task = induction
    context = SearchContext(metric="logit_diff")
    found = ALGORITHMS["edge_pruning"].function(model, task, Ablation("resample"), context, edges=10, steps=50, loss="metric")
    assert found.trace[-1]["loss"] < 0  # minus the logit difference


def test_bad_settings_get_a_sentence():
    model = model_of("gpt2")
    task = random_task(model)
    for algorithm in LEARNED:
        with pytest.raises(BadSetting, match="steps=0 must be a whole number from 1"):
            run(algorithm, model, task, steps=0)
        with pytest.raises(BadSetting, match="learning_rate=0 must be a number above 0"):
            run(algorithm, model, task, learning_rate=0)
        with pytest.raises(UnknownName, match="unknown value of loss 'kll'"):
            run(algorithm, model, task, loss="kll")
        with pytest.raises(BadSetting, match="edges=9999 is more than"):
            run(algorithm, model, task, edges=9999)
        with pytest.raises(BadSetting, match="runs through hooks"):
            run(algorithm, model_of("gpt2", components="hooks"), task)
    with pytest.raises(UnknownName, match="value of unit"):
        run("subnetwork_probing", model, task, unit="nodes")
    with pytest.raises(BadSetting, match="smallest=9999"):
        run("soft_topk", model, task, smallest=9999)
    with pytest.raises(BadSetting, match="warm_up=2 must be a number from 0 to 1"):
        run("edge_pruning", model, task, warm_up=2)


def test_what_cannot_be_masked_is_refused_with_a_sentence():
    model = model_of("gpt2")
    task = random_task(model)
    for metric, ablation, memory, match in (
        ("accuracy", Ablation("mean"), "4GiB", "constant almost everywhere"),
        ("logit_diff", Ablation("mean", target="pattern"), "4GiB", r"ablation\.target=output"),
        ("logit_diff", Ablation("mean"), "10KiB", r"masks on 6 examples .* need about .* over the budget"),
    ):
        context = SearchContext(metric=metric, memory=memory)
        with pytest.raises(BadSetting, match=match):
            ALGORITHMS["edge_pruning"].function(model, task, ablation, context, loss="metric", steps=1)
    bare: Any = Task("bare", task.train[:2], ())
    found = ALGORITHMS["edge_pruning"].function(model, bare, Ablation("mean"), SearchContext(metric="accuracy"), steps=2)
    assert found.circuit.graph == model.graph  # loss=kl needs no gradient of the metric
