"""Models whose output is a number: targets, the squared error, the correlation, and what such a model cannot be asked."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from models import toy
from tiny import word_model

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadSetting, BadTask, MetricAtChance
from circuitdisc.metrics import METRICS
from circuitdisc.models import cut_toy
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.measured import constant_errors


@pytest.fixture(scope="module")
def model():
    return cut_toy(toy("no_norm", d_vocab_out=1).double(), name="number")


def rows(model, n=40, noise=0.05, seed=0):
    """Prompts with the model's own number, a little off."""
    generator = np.random.default_rng(seed)
    made = []
    while len(made) < n:
        clean = generator.integers(0, model.d_vocab, 6).tolist()
        corrupted = [clean[0], *generator.integers(0, model.d_vocab, 2).tolist(), *clean[3:]]
        if corrupted != clean:
            with torch.no_grad():
                output = float(
                    model.own_logits(torch.tensor([clean]), torch.ones(1, 6, dtype=torch.long), torch.arange(6)[None])[0, -1, 0]
                )
            made.append({"clean": clean, "corrupted": corrupted, "target": output + noise * float(generator.normal())})
    return made


def written(folder, lines, name="numbers.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def task(model, tmp_path_factory):
    return cd.load_task(written(tmp_path_factory.mktemp("numbers"), rows(model)), model)


def test_targets_are_read_from_a_file(model, task, tmp_path):
    assert task.metric == "squared_error"
    lines = rows(model)
    by_prompt = {tuple(line["clean"]): line["target"] for line in lines}
    for example in (*task.train, *task.heldout):
        assert example.targets == (by_prompt[example.clean],)
        assert example.answers == ((0,),)
    cells = ["clean_ids,corrupted_ids,target"]
    cells += [f"{' '.join(map(str, x['clean']))},{' '.join(map(str, x['corrupted']))},{x['target']!r}" for x in lines]
    (tmp_path / "numbers.csv").write_text("\n".join(cells) + "\n")
    again = cd.load_task(str(tmp_path / "numbers.csv"), model)
    assert (again.train, again.heldout) == (task.train, task.heldout)


def test_text_and_several_positions(tmp_path):
    words = word_model()
    one_output = type(words)("words", words.tokenizer, words.d_vocab, 1)
    lines = [{"clean": f"all {a} are {b}", "target": [1, 0.5], "positions": [1, -1]} for a in NOUNS[:2] for b in NOUNS[2:4]]
    path = written(tmp_path, lines)
    example = cd.load_task(path, one_output).train[0]
    assert example.targets == (1.0, 0.5)
    assert example.answers == ((0,), (0,))
    assert len(example.positions) == 2
    with pytest.raises(BadTask, match=r"outputs: say which of them is the number, as its index in 'answers'"):
        cd.load_task(path, words)
    named = cd.load_task(written(tmp_path, [{**line, "answers": [7, 7]} for line in lines], "named.jsonl"), words)
    assert named.train[0].answers == ((7,), (7,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "high"}, "give the number"),
        ({"target": True}, "give the number"),
        ({"target": float("nan")}, "give the number"),
        ({"target": [1, 2]}, "2 numbers for 1 positions"),
        ({"target": 1, "wrong": 3}, "a number has no wrong answers"),
        ({"answers": 0.5}, "goes into 'target'"),
        ({"answers": 0}, "differ in having a 'target'"),
    ],
)
def test_bad_targets_get_a_sentence(model, tmp_path, change, words):
    first, *others = rows(model, 4)
    first.pop("target")
    with pytest.raises(BadFile, match=words):
        cd.load_task(written(tmp_path, [{**first, **change}, *others]), model)


def test_the_squared_error_is_that_of_the_numbers(model, task):
    patching = Patching(model, cd.Ablation("resample"), task.train)
    found = patching.evaluate(task.train, {"full": model.graph.edge_mask}, [METRICS["squared_error"]])["full"]["squared_error"]
    for example, value in zip(task.train, found.tolist(), strict=True):
        output = model.own_logits(torch.tensor([example.clean]), torch.ones(1, 6, dtype=torch.long), torch.arange(6)[None])[
            0, -1, 0
        ]
        assert value == pytest.approx(-((float(output) - example.targets[0]) ** 2), abs=1e-12)
    best = np.mean([one.targets[0] for one in task.train])
    np.testing.assert_allclose(constant_errors(task.train), [-((one.targets[0] - best) ** 2) for one in task.train])


@pytest.mark.parametrize("algorithm", ["acdc", "exact", "eap", "eap_ig"])
def test_searches_and_scores(model, task, algorithm):
    settings: dict[str, Any] = {"threshold": 0.05} if algorithm == "acdc" else {"edges": 20}
    found = cd.discover(model, task, algorithm, ablation="resample", **settings)
    scores = cd.score(model, task, found.circuit, n_random=2)
    names = {score.name for score in scores.scores}
    assert {"faithfulness", "difference", "correlation", "full_correlation"} <= names
    assert not {"accuracy", "kl"} & names  # of one output they are 1 and 0 whatever happens
    assert scores.get("ratio").value is None
    patching = Patching(model, cd.Ablation("resample"), task.train)
    (chunk,) = patching.chunks(task.heldout)
    outputs = patching.circuit_logits(chunk, found.circuit.mask)[:, 0].numpy()
    wanted = np.corrcoef(outputs, [one.targets[0] for one in task.heldout])[0, 1]
    assert scores.get("correlation").value == pytest.approx(wanted, abs=1e-12)


def test_exact_effects_of_the_squared_error(model, task):
    """Each edge cut alone, by the plain definition."""
    found = cd.discover(model, task, "exact", ablation="resample", edges=5)
    assert found.edge_scores is not None
    patching = Patching(model, cd.Ablation("resample"), task.train)
    (chunk,) = patching.chunks(task.train)
    targets = np.array([one.targets[0] for one in task.train])

    def error(mask):
        return -np.mean((patching.circuit_logits(chunk, mask)[:, 0].numpy() - targets) ** 2)

    full = error(model.graph.edge_mask)
    for at in np.argwhere(model.graph.edge_mask)[::7]:
        mask = model.graph.edge_mask.copy()
        mask[tuple(at)] = False
        assert found.edge_scores[tuple(at)] == pytest.approx(error(mask) - full, abs=1e-10)


def test_chance_is_the_best_constant(model, tmp_path):
    generator = np.random.default_rng(0)
    lines = [{**line, "target": float(generator.normal())} for line in rows(model)]
    task = cd.load_task(written(tmp_path, lines), model)
    with pytest.raises(MetricAtChance, match="not above the best constant"):
        cd.discover(model, task, "eap", ablation="resample", edges=5)
    assert cd.discover(model, task, "eap", ablation="resample", edges=5, allow_chance=True).circuit.n_edges


@pytest.mark.parametrize("metric", ["log_prob", "kl", "accuracy"])
def test_weighing_one_output_is_not_chance(model, task, tmp_path, metric):
    """A task of tokens is no better: the sentence says what is wrong and what to do."""
    tokens = [{**line, "answers": 0} for line in rows(model)]
    for line in tokens:
        line.pop("target")
    for one in (task, cd.load_task(written(tmp_path, tokens), model)):
        with pytest.raises(BadSetting, match=r"number has 1: it is the same.*squared_error") as error:
            cd.discover(model, one, "eap", ablation="resample", edges=5, metric=metric)
        assert len(str(error.value)) < 500
        assert not isinstance(error.value, MetricAtChance)
    circuit = cd.Circuit.full(model.graph)
    for tool in (cd.score, cd.completeness, cd.minimality, cd.hypothesis_tests):
        with pytest.raises(BadSetting, match="squared_error"):
            tool(model, task, circuit, ablation="resample", metric=metric)


def test_a_correlation_is_no_metric_of_edges(model, task):
    with pytest.raises(BadSetting, match="no mean over its examples"):
        cd.discover(model, task, "eap", metric="correlation")


def test_what_asks_for_the_most_likely_answer_is_refused(model, task):
    for call in (
        lambda: cd.heads.neurons(model, task),
        lambda: cd.heads.neuron_table(model, task, ["m0.n1"], sizes=(1,)),
        lambda: cd.localised(model, task, ["a0.h1"]),
    ):
        with pytest.raises(BadSetting, match=r"one number|weighs outputs"):
            call()


def test_numbers_need_a_target(model, lightweight):
    task = cd.load_task("tpp", lightweight, n=4, n_heldout=4)
    with pytest.raises(BadSetting, match="give each a 'target'"):
        cd.discover(lightweight, task, "eap", metric="squared_error")


def test_the_command_line_knows_the_metric(capsys):
    assert main(["list", "metrics"]) == 0
    assert "squared_error" in capsys.readouterr().out
    assert main(["discover", "--help"]) == 0
    assert "squared_error" in capsys.readouterr().out
