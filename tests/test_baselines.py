"""The baseline table against the same figures computed one example at a time from the Hugging Face model's own logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import bpe_model, word_model

import circuitdisc as cd
from circuitdisc.checkpoints.baselines import Baselines
from circuitdisc.checkpoints.evaluation_sets import (
    ANY_LENGTH,
    CORRUPTED,
    HELDOUT,
    TEXT,
    any_length,
    own_answers_of_corrupted,
    text_examples,
)
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadTask, UnknownName
from circuitdisc.models import Model
from circuitdisc.shipped import FOLDER
from circuitdisc.tasks import Example
from circuitdisc.tasks.library.nouns import NOUNS

SETTINGS = {"name": "tpp", "n": 4, "n_heldout": 12, "seed": 3}


def reference(model: Model, ids: tuple[int, ...], answer: int, wrong: tuple[int, ...]) -> dict[str, float]:
    """The four figures after one prompt, from the module itself."""
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1].double()
    others = float(np.mean([logits[token] for token in wrong])) if wrong else float("nan")
    return {
        "log_prob": float(logits.log_softmax(-1)[answer]),
        "accuracy": float(int(logits.argmax()) == answer),
        "pair_accuracy": float(all(logits[answer] > logits[token] for token in wrong)) if wrong else float("nan"),
        "logit_diff": float(logits[answer]) - others,
    }


@pytest.fixture(scope="module")
def found() -> Baselines:
    return cd.baselines(["tpp/base", "tpp/featherweight"], SETTINGS, others=["induction"], n_others=5)


@pytest.mark.parametrize("name", ["tpp/base", "tpp/featherweight"])
@pytest.mark.parametrize("on", [HELDOUT, CORRUPTED, "induction"])
def test_figures_are_those_of_the_model_itself(found: Baselines, name: str, on: str) -> None:
    model = cd.load_model(name)
    task = cd.load_task("tpp", model, n=4, n_heldout=12, seed=3)
    examples: tuple[Example, ...] = task.heldout
    if on == "induction":
        examples = cd.load_task("induction", model, n=1, n_heldout=5).heldout
    rows = []
    for one in examples:
        prompt, answer, wrong = one.clean, one.answers[0][0], one.wrong[0]
        if on == CORRUPTED:
            assert one.corrupted is not None
            prompt, answer, wrong = one.corrupted, one.wrong[0][0], (one.answers[0][0], *one.wrong[0][1:])
        rows.append(reference(model, prompt, answer, wrong))
    for figure in ("log_prob", "accuracy", "pair_accuracy", "logit_diff"):
        one = found.get(name, figure, on)
        assert one.value == pytest.approx(np.mean([row[figure] for row in rows]), abs=1e-4)
        assert cd.metrics.METRICS[figure].least <= one.low <= one.value <= one.high <= cd.metrics.METRICS[figure].most
        assert one.n == len(examples)


def test_the_shipped_ladder_learns_tpp_and_forgets_recall(found: Baselines) -> None:
    assert found.get("tpp/base").value == 0.0
    assert found.get("tpp/base").high == pytest.approx(0.2425, abs=1e-3)  # Wilson's interval of 0 in 12
    assert found.get("tpp/featherweight").value > 0.5
    assert found.get("tpp/base", on=CORRUPTED).value == 1.0
    assert found.get("tpp/featherweight", on=CORRUPTED).value < 0.9
    with pytest.raises(KeyError):
        found.get("tpp/base", on=TEXT)


def test_a_text_is_read_token_by_token(tmp_path: Path) -> None:
    model = cd.load_model("tpp/base")
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"{a} implies {b} ." for a, b in zip(NOUNS[:40], NOUNS[40:80], strict=True)))  # two windows
    ids = model.tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    assert len(ids) > 2 * model.n_ctx
    one = cd.baselines("tpp/base", SETTINGS, others=[], text=path).get("tpp/base", "log_prob", TEXT)
    losses = []
    for start in range(0, len(ids) - 1, model.n_ctx):
        for end in range(start + 1, min(start + model.n_ctx + 1, len(ids))):
            losses.append(reference(model, tuple(ids[start:end]), ids[end], ())["log_prob"])
    assert one.n == len(losses) == len(ids) - 1
    assert one.value == pytest.approx(np.mean(losses), abs=1e-4)
    path.write_text("all")
    with pytest.raises(BadFile, match="fewer than two tokens"):
        text_examples(model, path)


def test_other_tasks_are_those_that_the_tokenizer_can_read() -> None:
    table = cd.baselines("multitask/base", {"name": "entity_tracking", "boxes": 4, "n_heldout": 3}, n_others=2)
    assert {HELDOUT, CORRUPTED, "ioi", "induction", "colored_objects", "entity_tracking (defaults)"} == set(table.sets)
    plain = cd.baselines("multitask/base", {"name": "entity_tracking", "n_heldout": 3}, others=None, n_others=2)
    assert "entity_tracking (defaults)" not in plain.sets
    with pytest.raises(BadTask):
        cd.baselines("multitask/base", SETTINGS | {"name": "ioi"}, others=["tpp"])
    with pytest.raises(UnknownName):
        cd.baselines("multitask/base", SETTINGS | {"name": "ioi"}, others=["tp"])


def test_shipped_fine_tunes_do_seven_boxes_as_their_results_say() -> None:
    results = json.loads((FOLDER / "multitask" / "RESULTS.json").read_text())
    names = ["multitask/base", "multitask/boxes_full", "multitask/boxes_lora"]
    table = cd.baselines(names, {"name": "entity_tracking", "boxes": 7, "n": 1, "n_heldout": 150}, others=[])
    stated = [results["boxes"]["base"], *(results["checkpoints"][name.partition("/")[2]] for name in names[1:])]
    for name, one in zip(names, stated, strict=True):
        found = table.get(name)
        wilson = stats.binomtest(round(found.value * found.n), found.n).proportion_ci(0.999, method="wilson")
        assert wilson.low <= one["tasks"]["entity_tracking, 7 boxes"] <= wilson.high
    assert min(table.get(name).value for name in names[1:]) > table.get(names[0]).value


def test_corrupted_prompts_need_a_wrong_answer() -> None:
    bare = Example((1, 2), (1, 3), (1,), ((4,),), ((),))
    assert own_answers_of_corrupted([bare]) == ()
    turned = own_answers_of_corrupted([Example((1, 2), (1, 3), (1,), ((4,),), ((5, 6),))])[0]
    assert (turned.clean, turned.answers, turned.wrong) == ((1, 3), ((5,),), ((4, 6),))


def test_no_second_set_where_every_answer_is_one_token(found: Baselines) -> None:
    assert ANY_LENGTH not in found.sets


def test_answers_of_several_tokens_are_a_second_set() -> None:
    settings = {"name": "tpp", "n": 4, "n_heldout": 6}
    found = any_length(bpe_model(n_ctx=400), settings)
    expected = cd.load_task("tpp", bpe_model(n_ctx=400), n=4, n_heldout=6, first_token=True).heldout
    assert found == expected
    assert any(len(one.whole) > 1 for one in found)
    assert any_length(bpe_model(n_ctx=400), {**settings, "first_token": True}) == ()  # then it is the first set
    assert any_length(word_model(), settings) == ()
    assert any_length(bpe_model(), {"name": "ioi"}) == ()


def test_the_command_prints_and_leaves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table"
    args = ["checkpoints=[tpp/base,tpp/featherweight]", "task=tpp", "task.n_heldout=8", "others=[]", "progress=false"]
    assert main(["baselines", *args, f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "tpp/featherweight" in printed
    assert "log-probability" in printed
    record = json.loads((out / "baselines.json").read_text())
    assert record["checkpoints"] == ["tpp/base", "tpp/featherweight"]
    assert "Baselines of checkpoints" in (out / "report.html").read_text()
    assert main(["baselines", "task=tpp"]) == 2
    assert "which checkpoints" in capsys.readouterr().err
