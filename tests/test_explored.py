"""What the explorer shows is what the slow and obvious ways give."""

import base64
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_pages import Page

import circuitdisc as cd
from circuitdisc.ablation import get_ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile
from circuitdisc.heads import attention_to, head_roles, logit_attribution
from circuitdisc.heads.explored import FORMAT, Explored, explored
from circuitdisc.jobs.pipeline import start, write_page
from circuitdisc.metrics import get_metric
from circuitdisc.schemas import validate

SAMPLE = 6


@pytest.fixture(scope="module")
def case(lightweight):
    task = cd.load_task("tpp", lightweight, n=8, n_heldout=12)
    circuit = cd.discover(lightweight, task, "eap", ablation="resample", edges=60).circuit
    settings = {"ablation": get_ablation("resample"), "metric": get_metric("logit_diff")}
    seen = explored(lightweight, task, circuit, **settings, exact_edges=10, edge_examples=SAMPLE)
    return lightweight, task, circuit, seen


def test_exact_effects_are_those_of_the_circuit_without_the_edge(case):
    model, task, circuit, seen = case
    metric, sample = get_metric("logit_diff"), task.heldout[:SAMPLE]
    masks = {"whole": circuit.mask}
    for name in seen.edges.exact:
        masks[name] = circuit.mask.copy()
        masks[name][circuit.graph.parse_edge(name)] = False
    values = Patching(model, get_ablation("resample"), task.train).evaluate(sample, masks, [metric])
    assert len(seen.edges.exact) == 10
    for name, changes in seen.edges.exact.items():
        truth = (values[name]["logit_diff"] - values["whole"]["logit_diff"]).numpy()
        assert changes == pytest.approx(truth, abs=1e-5)
        mean, low, high = seen.edges.means[name]
        assert mean == pytest.approx(truth.mean(), abs=1e-5)
        assert low <= mean <= high


def test_estimates_are_those_of_edge_attribution(case):
    model, task, circuit, seen = case
    on_sample = replace(task, train=task.heldout[:SAMPLE])
    scores = cd.discover(model, on_sample, "eap", ablation="resample", edges=60).edge_scores
    assert scores is not None
    for name, value in seen.edges.estimated.items():
        assert value == pytest.approx(scores[circuit.graph.parse_edge(name)], abs=1e-5)
        assert np.mean(seen.edges.estimates[name]) == pytest.approx(value, abs=1e-5)
    assert set(seen.edges.estimated) == set(circuit.edge_names())


def test_nodes_say_what_the_tools_for_heads_say(case):
    model, task, circuit, seen = case
    added = logit_attribution(model, task, split="heldout")
    roles = head_roles(model, task, split="heldout").heads_by_role
    attention = attention_to(model, task, query="end", key="b2", split="heldout")
    query, key = seen.positions.index("end"), seen.positions.index("b2")
    for name in set(circuit.nodes()) - {"logits"}:
        at, facts = added.names.index(name), seen.nodes[name]
        assert (facts.adds, facts.low, facts.high) == pytest.approx((added.mean[at], added.low[at], added.high[at]), abs=1e-5)
        assert facts.roles == [role for role, heads in roles.items() if name in heads]
    for name in circuit.heads():
        truth = attention.mean[circuit.graph.parse_head(name)]
        assert seen.attends[name][query][key] == pytest.approx(truth, abs=6e-4)


def test_patterns_and_answers_are_those_of_the_model(case):
    model, task, circuit, seen = case
    texts = {tuple(shown.tokens): at for at, shown in enumerate(seen.examples)}
    by_place = {texts[tuple(example.text.replace(",", " ,").replace(".", " .").split())]: example for example in task.heldout}
    for place, shown in enumerate(seen.patterned):
        example = by_place[shown]
        logits, cache = cd.run_with_cache(model, [list(example.clean)], ["pattern"])
        last = logits[0, example.positions[0]].double().softmax(-1)
        assert seen.examples[shown].full[0].probability == pytest.approx(float(last.max()), abs=1e-5)
        assert seen.examples[shown].full[0].token == model.tokenizer.decode([int(last.argmax())])
        for name, (layer, head) in circuit.graph.heads.items():
            if name in seen.patterns:
                square = np.frombuffer(base64.b64decode(seen.patterns[name][place]), dtype=np.uint8).reshape(len(example), -1)
                assert square / 255 == pytest.approx(cache["pattern"][layer][head, 0].numpy(), abs=0.5 / 255 + 1e-9)


def test_the_file_fits_its_schema_and_ranks_are_an_order(case):
    *_, seen = case
    assert validate(Explored, json.loads(json.dumps(asdict(seen))), "explorer.json") == seen
    assert sorted(shown.rank for shown in seen.examples) == list(range(12))
    gaps = [abs(shown.full_value - shown.circuit_value) for shown in sorted(seen.examples, key=lambda shown: shown.rank)]
    assert gaps == sorted(gaps)
    assert seen.format == FORMAT
    assert seen.notes == []


def test_what_cannot_be_had_is_noted(case):
    model, task, circuit, _ = case
    settings = {"ablation": get_ablation("resample"), "metric": get_metric("kl")}
    seen = explored(model, task, circuit, **settings, exact_edges=2, edge_examples=2)
    assert seen.edges.estimates == {}
    assert [note.partition(":")[0] for note in seen.notes] == ["estimates of edges"]
    assert len(seen.edges.exact) == 2


def test_groups_are_read_back_and_bad_ones_refused(tmp_path):
    config = {
        "model": {"name": "tpp/lightweight"}, "task": {"name": "tpp", "n": 8, "n_heldout": 8}, "metric": {"name": None},
        "algorithm": {"name": "eap", "edges": 40}, "ablation": {"kind": "mean"}, "scoring": {"n_random": 1}, "seed": 0,
        "memory": "1GiB", "allow_chance": False, "progress": False, "explorer": True,
    }  # fmt: skip
    run = start(config, tmp_path / "run").folder
    groups = {"movers": ["a2.h0"], "<b>": []}
    (run / "groups.json").write_text(
        json.dumps({"format": "circuitdisc.groups", "version": 1, "groups": groups, "pinned": ["m0"]})
    )
    data = Page(write_page(run).read_text("utf-8")).explorers["explorer-circuit"]
    assert (data["groups"], data["pinned"]) == (groups, ["m0"])
    assert len(data["explored"]["examples"]) == 8
    (run / "groups.json").write_text(json.dumps({"format": "circuitdisc.groups", "version": 1, "groups": {"movers": [7]}}))
    with pytest.raises(BadFile, match=r"groups\.json: 'groups\.movers\.0' is 7, and it should be"):
        write_page(run)
