"""ACDC decides edge for edge as the straightforward sequential walk, whatever the batch size of the speculation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of, toy
from sequential import decided, sequential_acdc

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import SearchContext
from circuitdisc.engine.memory import COPIES_OF_SENDERS
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import METRICS
from circuitdisc.models import cut_toy
from circuitdisc.tasks.base import Task


def context(metric="logit_diff", **more):
    return SearchContext(metric=metric, **more)


@pytest.mark.parametrize("family", ["attention_only", "bidirectional", "parallel", "rms_rotary_grouped", "windowed"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["zero", "mean", "resample"]),
    metric=st.sampled_from(["logit_diff", "kl", "log_prob", "prob_diff"]),
    threshold=st.sampled_from([0.001, 0.01, 0.1]),
    relative=st.booleans(),
    two_sided=st.sampled_from([None, True, False]),
    order=st.sampled_from(["descending", "ascending", "random"]),
    speculation=st.sampled_from([None, 1, 3, 64]),
    first_change=st.sampled_from([1, 3, 4]),
    memory=st.sampled_from(["1GB", "small"]),
    split=st.booleans(),
)
def test_same_decisions_as_the_sequential_walk(
    family, seed, kind, metric, threshold, relative, two_sided, order, speculation, first_change, memory, split
):
    """In every combination of options: prompts of unequal length, differing early or late, in one batch or in several."""
    model = random_graph(family, seed, split)
    task = Task("random", tuple(random_examples(model, 3, seed, first_change)), ())
    if memory == "small":  # one example at a time
        memory = 10 * 8 * COPIES_OF_SENDERS * model.graph.n_senders * model.components.spec.d_model * 3
    rule = {"threshold": threshold, "relative": relative and metric != "kl", "two_sided": two_sided, "order": order}
    found = acdc(model, task, Ablation(kind), context(metric, memory=memory), speculation=speculation, **rule)
    mask, decisions = sequential_acdc(model, task, Ablation(kind), metric, **rule)
    assert decided(found) == decisions
    assert found.circuit == Circuit(model.graph, mask).prune()


def random_graph(family, seed, split):
    """A random toy of this kind, of 1 to 3 layers with 1 to 4 heads."""
    generator = np.random.default_rng(seed)
    heads = int(generator.choice([2, 4] if family == "rms_rotary_grouped" else [1, 2, 4]))
    if family == "windowed":
        return model_of("mistral")
    sizes = {"n_layers": int(generator.integers(1, 4)), "n_heads": heads}
    return cut_toy(toy(family, seed, **sizes).double(), name=family, split_embeddings=split)


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gpt_neox", "gemma3_text", "olmo2", "falcon_alibi", "gptj", "cohere", "mixtral"]
)
@pytest.mark.parametrize("first_change", [1, 4])
def test_same_decisions_on_real_architectures(family, first_change):
    """With prompts that differ early, and late: positions before the first difference are not run again."""
    model = model_of(family)
    task = Task("random", tuple(random_examples(model, 3, 5, first_change)), ())
    found = acdc(model, task, Ablation("resample"), context(), threshold=0.003)
    _, decisions = sequential_acdc(model, task, Ablation("resample"), "logit_diff", 0.003)
    assert decided(found) == decisions
    assert found.circuit.n_edges > 0


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize(
    ("metric", "threshold", "relative"),
    [("logit_diff", 0.5, False), ("logit_diff", 0.02, True), ("kl", 0.05, False), ("log_prob", 0.2, True)],
)
def test_same_decisions_on_the_shipped_model(lightweight, kind, metric, threshold, relative):
    """Every edge of the shipped model, against whole-model runs that reuse nothing."""
    import circuitdisc as cd

    task = cd.load_task("tpp", lightweight, n=3, n_heldout=3)
    found = acdc(lightweight, task, Ablation(kind), context(metric), threshold=threshold, relative=relative)
    _, decisions = sequential_acdc(
        lightweight, task, Ablation(kind), metric, threshold, relative=relative, measure=whole_model_metric
    )
    assert decided(found) == decisions
    if kind == "mean":  # the batch size of the speculation never changes the result
        rule = {"threshold": threshold, "relative": relative}
        again = acdc(lightweight, task, Ablation(kind), context(metric), speculation=7, **rule)
        assert decided(again) == decisions


def whole_model_metric(model, chunks, mask, metric):
    """The masked run of tests/reference.py with all heads of a layer at once (GPT-2 alone), for models of real size."""
    values = [chunk.batch.per_example(metric(dense_run(model, chunk, mask), chunk.labels)) for chunk in chunks]
    return float(torch.cat(values).mean())


def dense_run(model, chunk, mask):
    spec, weights, graph, batch = model.components.spec, model.components.weights, model.graph, chunk.batch
    keep = torch.as_tensor(mask).to(chunk.clean)
    ablated = chunk.ablated.expand_as(chunk.clean)
    live = torch.zeros_like(chunk.clean)
    constant = torch.zeros(spec.d_model, dtype=model.dtype)
    live[0] = chunk.clean[0]

    def read(receivers):
        n = int(graph.n_upstream[receivers[0]])
        kept = keep[receivers, :n]
        return constant + torch.einsum("rs,sbtd->rbtd", kept, live[:n]) + torch.einsum(
            "rs,sbtd->rbtd", 1 - kept, ablated[:n]
        )  # fmt: skip

    def norm(x, w):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w.scale, w.shift, spec.eps)

    length = batch.clean.shape[1]
    reach = torch.ones(length, length, dtype=torch.bool).tril() & batch.is_token[:, None, :] | torch.eye(length).bool()
    for layer, block in enumerate(weights.layers):
        q, k, v = (
            torch.einsum("hbtd,hdk->hbtk", norm(read([graph.receiver_index[f"a{layer}.h{h}<{i}>"] for h in range(8)]),
                                                block.norm_attention), W) + b[:, None, None]
            for i, W, b in (("q", block.W_Q, block.b_Q), ("k", block.W_K, block.b_K), ("v", block.W_V, block.b_V))
        )  # fmt: skip
        scores = (q @ k.transpose(-1, -2)) * spec.attn_scale[layer]
        z = scores.masked_fill(~reach, -torch.inf).softmax(-1) @ v
        first = graph.sender_index[f"a{layer}.h0"]
        live[first : first + 8] = torch.einsum("hbtk,hkd->hbtd", z, block.W_O)
        constant = constant + block.b_O
        x = norm(read([graph.receiver_index[f"m{layer}"]]), block.norm_mlp)[0]
        hidden = torch.nn.functional.gelu(x @ block.W_in + block.b_in, approximate="tanh")
        live[first + 8] = hidden @ block.W_out + block.b_out
    final = norm(read([graph.n_receivers - 1]), weights.norm_final)[0] @ weights.W_U
    return final[batch.read_example, batch.read_position]


def test_hook_based_models_decide_the_same():
    fast, slow = model_of("gpt2"), model_of("gpt2", components="hooks")
    task = random_task(fast, n=3)
    runs = [acdc(model, task, Ablation("resample"), context(), threshold=0.01) for model in (fast, slow)]
    assert decided(runs[0]) == decided(runs[1])


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_order_is_followed(order):
    model = model_of("attention_only")
    found = acdc(model, random_task(model), Ablation("zero"), context(seed=3), threshold=0.01, order=order)
    edges = [line["edge"] for line in found.trace if line.get("edge", "").endswith("->logits")]
    senders = [model.graph.sender_index[edge.split("->")[0]] for edge in edges]
    if order == "ascending":
        assert senders == sorted(senders)
    else:
        assert senders == np.random.default_rng([3, model.graph.n_receivers - 1]).permutation(len(senders)).tolist()


@pytest.mark.parametrize("cut_at", [1, 30, 100, 10_000])
def test_resumes_to_the_same_circuit_and_journal(tmp_path, cut_at, open_journal):
    model = model_of("bidirectional", torch.float32)
    task = random_task(model)
    whole = open_journal(tmp_path / "whole.jsonl")
    first = acdc(model, task, Ablation("mean"), context(journal=whole), threshold=0.02)
    text = (tmp_path / "whole.jsonl").read_text()
    (tmp_path / "killed.jsonl").write_text(text[: cut_at * 20])
    again = acdc(model, task, Ablation("mean"), context(journal=open_journal(tmp_path / "killed.jsonl")), threshold=0.02)
    assert again.circuit == first.circuit
    assert (tmp_path / "killed.jsonl").read_text() == text


def test_a_lower_threshold_never_costs_more_metric_than_it_allows():
    model = model_of("no_norm")
    task = random_task(model)
    found = acdc(model, task, Ablation("mean"), context(), threshold=0.05)
    tested = [line for line in found.trace if "edge" in line]
    cut = [line["metric"] for line in tested if not line["kept"]]
    falls = -np.diff(cut)
    assert (falls < 0.05).all()


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"threshold": "a"}, BadSetting),
        ({"threshold": float("nan")}, BadSetting),
        ({"threshold": -1.0}, BadSetting),
        ({"order": "descnding"}, UnknownName),
        ({"speculation": 0}, BadSetting),
    ],
)
def test_bad_settings_get_a_sentence(setting, error):
    model = model_of("attention_only")
    with pytest.raises(error, match=next(iter(setting))):
        acdc(model, random_task(model), Ablation("zero"), context(), **setting)


def test_a_fraction_of_a_metric_that_is_zero_by_construction_is_refused():
    model = model_of("attention_only")
    with pytest.raises(BadSetting, match="no fraction of 0"):
        acdc(model, random_task(model), Ablation("zero"), context("kl"), relative=True)


def test_logits_of_all_rows_stay_within_the_budget():
    """A metric that needs the whole vocabulary tries fewer rows than one that needs the answers' columns."""
    model = model_of("attention_only")
    task = random_task(model, n=6)
    rows = []
    for metric in ("logit_diff", "kl"):
        patching = Patching(model, Ablation("zero"), task.train, memory="4MB")
        removal = patching.removal(patching.hold(task.train), model.graph.edge_mask, METRICS[metric], first=0)
        rows.append(removal.most_rows(0))
    assert 1 < rows[1] < rows[0]


def test_only_the_tokens_that_count_are_run():
    """Of a late difference and an answer at the end, a fraction of what whole-model runs compute."""
    model = model_of("gpt2")
    examples = [replace(example, positions=example.positions[-1:], answers=example.answers[-1:], wrong=example.wrong[-1:])
                for example in random_examples(model, 4, first_change=4)]  # fmt: skip
    found = acdc(model, Task("random", tuple(examples), ()), Ablation("resample"), context(), threshold=0.01)
    tested = sum("edge" in line for line in found.trace)
    whole_runs = tested * (model.graph.n_senders - 1)
    assert 0 < found.cost.node_evaluations < whole_runs / 10


def test_a_cut_that_no_answer_can_see_costs_nothing():
    """Prompts that differ only behind the answer."""
    model = model_of("gpt2")
    examples = [
        replace(example, clean=(*example.clean, 1), corrupted=(*example.clean, 2)) for example in random_examples(model, 4)
    ]
    task = Task("random", tuple(examples), ())
    found = acdc(model, task, Ablation("resample"), context(), threshold=0.01)
    assert found.circuit.n_edges == 0
    assert found.cost.node_evaluations == 0
