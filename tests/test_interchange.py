"""Interchange interventions against hooks on the modules, and interchange accuracy against a slow count."""

from functools import cache

import numpy as np
import pytest
import torch
from examples import random_examples
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.engine.interchange import interchange_chunks, interchanged_logits
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.known.causal import UNDEFINED, CausalModel, Setting, Variable
from circuitdisc.known.compiled import build
from circuitdisc.known.siit.edge_run import Carried, EdgeRun
from circuitdisc.known.siit.lookup import causal_match, previous_token
from circuitdisc.models import ToyTransformer, cut_hugging_face
from circuitdisc.scoring.interchange import Hits, interchange_accuracy
from circuitdisc.scoring.interchange_draws import random_nodes, source_pairs
from circuitdisc.tasks.base import Example

NODES = [("a0.h1",), ("m0",), ("a1.h0", "a1.h3"), ("a0.h2", "m1", "a2.h0"), ("input",)]


# --- the run -------------------------------------------------------------------------------------------------------------


@cache
def gpt2():
    return model_of("gpt2"), hugging_face("gpt2").double()


def hooked_logits(module, example, nodes, where):
    """Base logits with nodes' outputs, taken from a run on the source prompt, put in place at some positions; one prompt."""
    n_heads, width = module.config.n_head, module.config.n_embd // module.config.n_head
    seen, handles, replay = {}, [], [False]

    def swap(name, value):
        if not replay[0]:
            seen[name] = value.clone()
            return value
        value = value.clone()
        value[:, where] = seen[name][:, where]
        return value

    def of_heads(layer):
        def hook(_, args):
            z = args[0].clone()
            for head in range(n_heads):
                if f"a{layer}.h{head}" in nodes:
                    columns = slice(head * width, (head + 1) * width)
                    z[..., columns] = swap(f"a{layer}.h{head}", z[..., columns])
            return (z,)

        return hook

    for layer, block in enumerate(module.transformer.h):
        handles.append(block.attn.c_proj.register_forward_pre_hook(of_heads(layer)))
        if f"m{layer}" in nodes:
            handles.append(block.mlp.register_forward_hook(lambda _, __, out, layer=layer: swap(f"m{layer}", out)))
    if "input" in nodes:
        handles.append(module.transformer.drop.register_forward_hook(lambda _, __, out: swap("input", out)))
    with torch.no_grad():
        module(torch.tensor([example.corrupted]))
        replay[0] = True
        logits = module(torch.tensor([example.clean])).logits[0]
    for handle in handles:
        handle.remove()
    return logits[list(example.positions)]


@pytest.mark.parametrize("positions", [None, [1, 3]])
@pytest.mark.parametrize("nodes", NODES, ids=lambda nodes: "+".join(nodes))
def test_replaced_nodes_equal_hooks_on_the_module(nodes, positions):
    model, module = gpt2()
    examples = random_examples(model, 5)
    (chunk,) = interchange_chunks(model, examples)
    where = None
    if positions is not None:
        where = torch.zeros(chunk.batch.clean.shape, dtype=torch.bool)
        where[:, positions] = True
    logits = interchanged_logits(model, chunk, nodes, where)
    kept = range(10) if positions is None else positions
    expected = [hooked_logits(module, one, nodes, [p for p in kept if p < len(one)]) for one in examples]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("nodes", [("a0.h3",), ("m0",), ("a0.h3", "m1"), ("input",)], ids=lambda nodes: "+".join(nodes))
def test_replaced_nodes_of_a_toy_equal_the_plain_run_of_edges(nodes):
    """A node replaced is the same as all of its edges carrying the source's value."""
    case = cd.siit.load("histogram", n=12, n_heldout=4, dtype="float64")
    graph, toy = case.model.graph, case.model.module
    assert isinstance(toy, ToyTransformer)
    (chunk,) = interchange_chunks(case.model, case.task.train)
    assert chunk.batch.corrupted is not None
    logits = interchanged_logits(case.model, chunk, nodes)
    with torch.no_grad():
        source = EdgeRun(toy, graph, chunk.batch.corrupted).senders
        cut = torch.zeros(len(source[0]), graph.n_receivers, graph.n_senders, dtype=torch.bool)
        for node in nodes:
            cut[:, :, graph.sender_index[node]] = True
        run = EdgeRun(toy, graph, chunk.batch.clean, Carried(source, cut & torch.from_numpy(graph.edge_mask.copy()), source))
    torch.testing.assert_close(logits, run.logits[chunk.batch.reads], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["parallel", "rms_rotary_grouped"])
def test_all_nodes_replaced_give_the_source_prompt_and_none_the_base(family):
    model = model_of(family)
    (chunk,) = interchange_chunks(model, random_examples(model, 4))
    assert chunk.batch.corrupted is not None
    for nodes, tokens in ((tuple(model.graph.sender_index), chunk.batch.corrupted), ((), chunk.batch.clean)):
        expected = model.own_logits(tokens, chunk.batch.is_token.long(), chunk.batch.position_ids)[chunk.batch.reads]
        torch.testing.assert_close(interchanged_logits(model, chunk, nodes), expected, rtol=0, atol=1e-9)


# --- causal models -------------------------------------------------------------------------------------------------------


def doubled() -> CausalModel:
    """a = tokens + 1, b = tokens + positions, answer = 10 a + b, undefined where b = 5."""
    return CausalModel(
        (
            Variable("a", {"token": "tokens"}, lambda token: token + 1),
            Variable("b", {"token": "tokens", "place": "positions"}, lambda token, place: token + place),
            Variable("sum", {"a": "a", "b": "b"}, lambda a, b: torch.where(b == 5, UNDEFINED, 10 * a + b)),
        ),
        "doubled",
    )


def test_causal_models_run_and_are_intervened_on():
    causal, tokens = doubled(), torch.tensor([[1, 2, 3]])
    assert causal.answer == "sum"
    assert causal.edges[-2:] == (("b", "sum", "b"), ("sum", "logits", "logits"))
    assert causal.run(tokens)["logits"].tolist() == [[21, 33, UNDEFINED]]
    seven, here = torch.full((1, 3), 7), torch.tensor([[True, False, True]])
    assert causal.run(tokens, {"a": Setting(seven)})["sum"].tolist() == [[71, 73, UNDEFINED]]
    assert causal.run(tokens, {"b": Setting(seven, here)})["sum"].tolist() == [[27, 33, 47]]
    one_edge = causal.run(tokens, edges={("b", "token"): Setting(seven, here)})  # a still reads the tokens
    assert one_edge["b"].tolist() == [[7, 3, 9]]
    assert one_edge["sum"].tolist() == [[27, 33, 49]]
    assert causal.run(tokens, edges={("logits", "logits"): Setting(seven, here)})["logits"].tolist() == [[7, 33, 7]]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ((), "no variable"),
        ((Variable("a", {"x": "b"}, lambda x: x), Variable("b", {"x": "tokens"}, lambda x: x)), "reads 'b'"),
        ((Variable("a", {"x": "tokens"}, lambda x: x), Variable("a", {"x": "tokens"}, lambda x: x)), "two variables 'a'"),
    ],
)
def test_causal_models_that_cannot_run_are_refused(variables, words):
    with pytest.raises(BadSetting, match=words):
        CausalModel(variables)


# --- the score -----------------------------------------------------------------------------------------------------------


def test_the_score_is_the_share_that_a_slow_count_finds():
    case = cd.siit.load("histogram", n=4, n_heldout=20)
    examples, nodes = case.task.heldout, ("a0.h1", "a0.h3")
    scores = interchange_accuracy(
        case.model, case.causal, {"share": nodes}, examples, n_sources=3, n_random=0, positions=[2, 3]
    )
    pairs, bases = source_pairs(examples, 3, np.random.default_rng(0))
    assert bases.tolist() == [index for index in range(20) for _ in range(3)]
    shares, changed, where = [], [], torch.zeros(1, 7, dtype=torch.bool)
    where[:, [2, 3]] = True
    for pair in pairs:
        assert pair.corrupted is not None
        (chunk,) = interchange_chunks(case.model, [pair])
        said = interchanged_logits(case.model, chunk, nodes, where).argmax(-1).tolist()
        count = [[prompt.count(token) for token in prompt] for prompt in (pair.clean, pair.corrupted)]
        wanted = [count[p in (2, 3)][p] for p in pair.positions]
        hits = [one == other for one, other in zip(said, wanted, strict=True)]
        shares.append(np.mean(hits))
        moved = [hit for hit, p, one in zip(hits, pair.positions, wanted, strict=True) if one != count[0][p]]
        changed += [np.mean(moved)] if moved else []
    found = scores.get("share")
    assert found.value == pytest.approx(np.mean(shares), abs=1e-12)
    assert (found.n, found.undefined, found.n_effective) == (60, 0, len(changed))
    assert found.effective == pytest.approx(np.mean(changed), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert found.controls == ()


def induction_of_the_compiled_program() -> CausalModel:
    return CausalModel(
        (
            Variable("previous", {"q": "positions", "k": "positions", "v": "tokens"}, previous_token),
            Variable("next", {"q": "tokens", "k": "previous", "v": "tokens"}, causal_match),
        ),
        "induction",
    )


def test_a_compiled_program_has_interchange_accuracy_1_and_its_distractors_have_not():
    case = build("induction", rotate=0, distractors=2, n=4, n_heldout=40)
    causal, alignment = induction_of_the_compiled_program(), {"previous": "a0.h0", "next": "a1.h0"}
    scores = interchange_accuracy(case.model, causal, alignment, case.task.heldout)
    for score in scores.scores:
        assert score.value == 1.0
        assert 0.5 < score.low < score.high == 1.0  # Wilson's: no certainty from a few prompts
        assert len(score.controls) == 2  # both distractors of its layer
        assert all(control.effective == 0.0 for control in score.controls)
        assert {name for control in score.controls for name in control.nodes} == {f"{score.nodes[0][:2]}.h{h}" for h in (1, 2)}
    assert scores.get("previous").undefined > 0  # with another prompt's tokens before, a token may follow none or two
    wrong = interchange_accuracy(case.model, causal, {"previous": "a1.h0"}, case.task.heldout, variables=["previous"])
    assert (wrong.worst.effective or 0) < 0.5


def test_scores_repeat_themselves_and_are_plain():
    case = cd.siit.load("majority", n=4, n_heldout=20)
    first, again = (
        cd.interchange_accuracy(case.model, case.causal, case.alignment, case.task.heldout, seed=4) for _ in range(2)
    )
    assert first == again
    assert [row["variable"] for row in first.table()] == ["odd", "total", "majority"]
    plain = first.to_dict()
    assert plain["format"] == "circuitdisc.interchange_scores"
    assert plain["scores"][1]["nodes"] == ["a1.h2"]
    with pytest.raises(UnknownName, match="total"):
        first.get("totl")


def test_controls_are_other_nodes_of_the_same_kind_and_layer():
    graph, rng = model_of("gpt2").graph, np.random.default_rng(0)
    assert sorted(random_nodes(graph, ["a1.h2"], 10, rng)) == [("a1.h0",), ("a1.h1",), ("a1.h3",)]
    assert sorted(random_nodes(graph, ["m1"], 10, rng)) == [("m0",), ("m2",)]
    assert random_nodes(graph, ["input"], 10, rng) == []
    sets = random_nodes(graph, ["a0.h0", "a0.h1", "a2.h3", "m0"], 4, rng)
    assert len({frozenset(one) for one in sets}) == 4
    for one in sets:
        assert sorted(name.split(".")[0][0] for name in one) == ["a", "a", "a", "m"]
        assert set(one) >= {"a0.h2", "a0.h3"}
        assert not set(one) & {"a0.h0", "a0.h1", "a2.h3", "m0"}


def test_hits_leave_out_what_has_no_answer():
    reads = (torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0]))
    logits = torch.eye(3)[[1, 2, 0, 0]]
    wanted = torch.tensor([[1, 1], [0, UNDEFINED], [0, 0]])
    hits = Hits.empty().add(reads, logits, wanted, before=torch.tensor([[1, 2], [0, 1], [2, 2]]))
    np.testing.assert_array_equal(hits.shares(), [0.5, np.nan, 1.0])
    np.testing.assert_array_equal(hits.shares(hits.changed), [0.0, np.nan, 1.0])


def test_prompts_of_unequal_length_are_never_padded():
    """A causal model that looks at the end of the prompt sees the prompt's own end."""
    model = model_of("bidirectional")
    last = CausalModel((Variable("last", {"x": "tokens"}, lambda x: x[:, -1:].expand_as(x)),), "last")
    examples = [Example((*range(length - 1), end), None, (0,), ((end,),), ((0,),)) for length in (3, 5) for end in (7, 8, 9)]
    seen = []
    spied = CausalModel(
        (Variable("last", {"x": "tokens"}, lambda x: (seen.append(tuple(x.shape)), x[:, -1:].expand_as(x))[1]),)
    )
    scores = interchange_accuracy(model, spied, {"last": "a0.h0"}, examples, n_sources=2)
    assert set(seen) == {(6, 3), (6, 5)}
    assert scores.worst.n_effective == scores.worst.n == 12
    pairs, bases = source_pairs(examples[::-1], 2, np.random.default_rng(0))
    assert [len(pair) for pair in pairs] == [3] * 6 + [5] * 6
    assert all(examples[::-1][base].clean == pair.clean for base, pair in zip(bases, pairs, strict=True))
    assert last.run(torch.tensor([pairs[0].clean]))["logits"][0, 0] == pairs[0].clean[-1]


def one(length, positions=(0,)):
    return Example(tuple(range(length)), None, positions, ((0,),) * len(positions), ((1,),) * len(positions))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"alignment": {"shear": "a0.h3"}}, UnknownName, "share"),
        ({"alignment": {"share": "a0.h9"}}, UnknownName, "a0.h"),
        ({"alignment": {"share": ()}}, BadSetting, "no node"),
        ({"alignment": {}}, BadSetting, "no variable"),
        ({"variables": ["count"], "alignment": {"share": "a0.h3"}}, UnknownName, "aligned variable"),
        ({"positions": [9]}, BadSetting, r"0 to 6"),
        ({"n_sources": 0}, BadSetting, "n_sources=0"),
        ({"n_sources": 6}, BadTask, "others of its length"),
        ({"examples": ()}, BadTask, "no examples"),
        ({"confidence": 1}, BadSetting, "confidence"),
    ],
)
def test_wrong_settings_are_refused(change, error, words):
    case = cd.siit.load("histogram", n=2, n_heldout=6)
    settings = {"alignment": case.alignment, "examples": case.task.heldout, **change}
    with pytest.raises(error, match=words):
        interchange_accuracy(case.model, case.causal, settings.pop("alignment"), settings.pop("examples"), **settings)


def test_models_that_run_by_hooks_are_refused():
    model = cut_hugging_face(hugging_face("gpt2"), name="hooked", components="hooks")
    with pytest.raises(BadSetting, match="fast components"):
        interchange_accuracy(model, doubled(), {"a": "a0.h0"}, [one(4), one(4)])


def test_an_answer_that_is_never_defined_is_refused():
    never = CausalModel((Variable("none", {"x": "tokens"}, lambda x: torch.full_like(x, UNDEFINED)),), "never")
    model = model_of("attention_only")
    with pytest.raises(BadTask, match="none of the 2 interventions"):
        interchange_accuracy(model, never, {"none": "a0.h0"}, [one(4), one(4)], n_sources=1)
