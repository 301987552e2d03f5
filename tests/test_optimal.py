"""`optimal`: learned constants against the optimum where it is known, and against the mean everywhere."""

import numpy as np
import pytest
import torch
from direct_attribution import direct_eap
from examples import TINY_RUN, random_task
from models import model_of, toy
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation, get_ablation, optimal
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import METRICS, get_metric
from circuitdisc.models import cut_toy

KL = METRICS["kl"]
OPTIMAL = Ablation("optimal", settings={"steps": 12})


@pytest.fixture(scope="module")
def small():
    model = model_of("gpt2")
    return model, random_task(model, 4)


@pytest.fixture
def nothing_learned(monkeypatch):
    monkeypatch.setattr(optimal, "_learned", {})


def divergences(model, ablation, examples):
    """For each sender the divergence when all edges out of it are cut."""
    masks = {node.name: model.graph.edge_mask.copy() for node in model.graph.senders}
    for index, node in enumerate(model.graph.senders):
        masks[node.name][:, index] = False
    values = Patching(model, ablation, examples).evaluate(examples, masks, [KL])
    return {name: -float(of["kl"].mean()) for name, of in values.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "parallel", "attention_only", "split embeddings"])
def test_each_sender_loses_no_more_than_with_its_mean(family):
    model = model_of("gpt2", split_embeddings=True) if family == "split embeddings" else model_of(family)
    examples = random_task(model, 5).train
    mean, learned = (divergences(model, ablation, examples) for ablation in (Ablation("mean", "dataset"), OPTIMAL))
    assert all(learned[name] <= mean[name] + 1e-12 for name in mean)
    assert sum(learned.values()) < 0.9 * sum(mean.values())


def test_where_nothing_but_the_embedding_is_read_the_optimum_is_known():
    """Then the best output that is the same for all examples is the mean of the model's own distributions."""
    module = toy("no_norm", n_layers=1, d_vocab_out=7).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.rsplit(".", 1)[-1] in ("W_O", "b_O", "W_out", "b_out"):
                parameter.zero_()
    model = cut_toy(module, name="embedding alone")
    examples = random_task(model, 6).train
    patching = Patching(model, Ablation("optimal", settings={"steps": 600}), examples)
    (chunk,) = patching.chunks(examples)
    assert chunk.labels.full_logprobs is not None
    own = chunk.labels.full_logprobs.exp()
    readings = torch.tensor([1 / len(examples[i].positions) for i in chunk.batch.read_example.tolist()]) / len(examples)
    best = (own * readings[:, None].double()).sum(0)
    empty = patching.circuit_logits(chunk, np.zeros_like(model.graph.edge_mask)).softmax(-1)
    torch.testing.assert_close(empty, best.expand_as(empty), atol=2e-3, rtol=0)
    least = float((readings * (own * (own.log() - best.log())).sum(-1)).sum())
    assert divergences(model, Ablation("optimal", settings={"steps": 600}), examples)["input"] == pytest.approx(least, rel=1e-4)
    assert divergences(model, Ablation("mean", "dataset"), examples)["input"] > 1.05 * least


@pytest.mark.long
def test_small_steps_away_lose_more(small):
    """A head's, an MLP's and the embedding's constants are minima."""
    model, task = small
    patching = Patching(model, Ablation("optimal", settings={"steps": 400}), task.train)
    generator = torch.Generator().manual_seed(0)
    (chunk,) = patching.chunks(task.train)
    for name in ("input", "a1.h2", "m1"):
        index, mask = model.graph.sender_index[name], model.graph.edge_mask.copy()
        mask[:, index] = False

        def lost(chunk=chunk, mask=mask):
            chunk._ablated_sums.clear()
            logits = patching.circuit_logits(chunk, mask)
            return -float(chunk.batch.per_example(KL(logits, chunk.labels)).mean())

        learned, constant = lost(), chunk.ablated[index].clone()
        for _ in range(10):
            step = torch.randn(constant.shape, generator=generator, dtype=constant.dtype)
            if name == "a1.h2":  # among what the head could write
                step = torch.randn(8, generator=generator, dtype=constant.dtype) @ model.components.weights.layers[1].W_O[2]
            step = 0.1 * step * constant.norm() / step.norm()
            chunk.ablated[index] = constant + step
            assert lost() > learned - 1e-9
            chunk.ablated[index] = constant
    chunk._ablated_sums.clear()


def test_runs_and_gradients_carry_the_same_constants(small):
    model, task = small
    mask = Circuit.from_heads(model.graph, ["a0.h1", "a2.h2"]).mask
    (chunk,) = Patching(model, OPTIMAL, task.train).chunks(task.train)
    assert chunk.ablated.shape[1:3] == (1, 1), "one constant for all examples and positions"
    slow = chunk.batch.per_example(KL(masked_run(model, chunk, mask), chunk.labels))
    fast = Patching(model, OPTIMAL, task.train).evaluate(task.train, {"": mask}, [KL])[""]["kl"]
    torch.testing.assert_close(fast, slow)
    metric = get_metric("log_prob")
    scores = ALGORITHMS["eap"].function(model, task, OPTIMAL, SearchContext(metric="log_prob")).edge_scores
    assert scores is not None
    np.testing.assert_allclose(scores, direct_eap(model, OPTIMAL, task.train, metric), atol=1e-9)


@pytest.mark.parametrize("algorithm", ["eap_ig", "acdc", "exact", "head_ablation"])
def test_searches_and_scores_run_under_it(small, algorithm):
    model, task = small
    found = cd.discover(model, task, algorithm, ablation=OPTIMAL, metric="log_prob", allow_chance=True)
    assert 0 < found.circuit.n_edges < model.graph.n_edges
    again = Circuit.from_dict(found.circuit.to_dict())
    assert again.provenance.ablation == OPTIMAL.to_dict()
    scores = cd.score(model, task, again, n_random=1)
    assert {score.ablation for score in scores.scores} == {OPTIMAL.label} == {"optimal (learned constants, 12 steps of 0.1)"}


def test_the_command_line_takes_its_settings(tmp_path, capsys):
    """A run under it can be scored under another ablation, which has not these settings, and the other way round."""
    run = [*TINY_RUN, "ablation=optimal"]
    assert main([*run, "ablation.steps=1", f"out={tmp_path / 'run'}"]) == 0
    assert Circuit.load(tmp_path / "run" / "circuit.json").provenance.ablation["steps"] == 1
    assert main(["score", str(tmp_path / "run"), "ablation=mean", "scoring.n_random=1"]) == 0
    assert main(["score", str(tmp_path / "run"), "ablation=optimal", "ablation.steps=2", "scoring.n_random=1"]) == 0
    capsys.readouterr()
    assert main([*run, "ablation.steps=0", f"out={tmp_path / 'bad'}"]) == 2
    assert "steps=0 must be a whole number from 1" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_learned_once_for_the_same_weights_examples_and_settings(small, nothing_learned):
    model, task = small
    before = [parameter.detach().clone() for parameter in model.module.parameters()]
    first, second = Patching(model, OPTIMAL, task.train), Patching(model, OPTIMAL, task.train)
    assert first.cost.backward_runs > 100
    assert second.cost.backward_runs == 0
    kept = first.fitted
    optimal._learned.clear()
    again = Patching(model, OPTIMAL, task.train, memory="200KB").fitted
    torch.testing.assert_close(again.embedding, kept.embedding)  # the same in smaller batches
    optimal._learned.clear()
    again = Patching(model, OPTIMAL, task.train).fitted
    assert all(torch.equal(again.z[layer], kept.z[layer]) for layer in kept.z), "nothing is random"
    Patching(model, OPTIMAL, task.heldout)
    Patching(model, Ablation("optimal", settings={"steps": 1}), task.train)
    assert len(optimal._learned) == 3
    assert all(torch.equal(*pair) for pair in zip(before, model.module.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_other_weights_are_learned_anew(nothing_learned):
    model = model_of("attention_only")
    task = random_task(model, 2)
    Patching(model, OPTIMAL, task.train)
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.5)
    Patching(model, OPTIMAL, task.train)
    assert len(optimal._learned) == 2


def test_what_cannot_be_learned_is_refused(small):
    model, task = small
    with pytest.raises(BadSetting, match=r"optimal learns what a sender writes.*use target=output"):
        get_ablation({"kind": "optimal", "target": "pattern"})
    with pytest.raises(BadSetting, match="steps=0 must be a whole number from 1"):
        get_ablation({"kind": "optimal", "steps": 0})
    with pytest.raises(UnknownName, match=r"unknown ablation setting 'step'\. Did you mean steps\?"):
        get_ablation({"kind": "optimal", "step": 3})
    slow = model_of("gpt2", components="hooks")
    with pytest.raises(BadSetting, match="ablation=optimal needs a model with fast components"):
        cd.discover(slow, random_task(slow), "acdc", ablation=OPTIMAL, allow_chance=True)
    with pytest.raises(BadSetting, match="neurons cannot be ablated by optimal"):
        cd.heads.neuron_table(model, task, ["m0.n0"], sizes=[1], ablation=OPTIMAL, n_random=1)
    single = cut_toy(toy("no_norm", d_vocab_out=1).double(), name="single")
    with pytest.raises(BadSetting, match="which is 0 with the single output of single: use ablation=mean"):
        Patching(single, OPTIMAL, random_task(model, 2).train)
