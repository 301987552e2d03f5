"""Desiderata from tasks and from files: their splits, their targets, and what is refused."""

import json

import pytest
from examples import toy_desideratum

import circuitdisc as cd
from circuitdisc.errors import BadFile, BadSetting, BadTask, UnknownName
from circuitdisc.tasks.desiderata import Desideratum, load_desiderata


def test_entity_tracking_ships_with_three():
    model = cd.load_model("multitask/base")
    found = load_desiderata("entity_tracking", model, n_train=5, n_choose=4, n_report=3, boxes=4)
    assert [one.name for one in found] == ["value", "position", "label"]
    for one in found:
        assert [len(getattr(one, split)) for split in ("train", "choose", "report")] == [5, 4, 3]
        drawn = cd.load_task("entity_tracking", model, n=9, n_heldout=3, boxes=4, corruption=one.name)
        assert [example.clean for example in (*one.train, *one.choose)] == [example.clean for example in drawn.train]
        for mine, theirs in zip(one.report, drawn.heldout, strict=True):
            assert mine.answers == tuple(wrong[:1] for wrong in theirs.wrong)
            assert mine.wrong == theirs.answers
    with pytest.raises(UnknownName, match="desideratum of task 'entity_tracking' 'colour'"):
        load_desiderata("entity_tracking", model, names="colour")
    with pytest.raises(BadSetting, match="corruption= cannot be set here"):
        load_desiderata("entity_tracking", model, corruption="value")
    with pytest.raises(UnknownName, match="task with desiderata 'ioi'"):
        load_desiderata("ioi", model)


def lines(n=9, **changes):
    return [{"desideratum": "d", "clean": [1, i], "corrupted": [2, i], "answers": 3, "wrong": 4, **changes} for i in range(n)]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_of_your_own(tmp_path):
    model = cd.load_model("toys/induction")
    rows = [*lines(9), *lines(6, desideratum="e", answers=5)]
    d, e = load_desiderata(write(tmp_path / "mine.jsonl", rows), model)
    assert [len(getattr(d, split)) for split in ("train", "choose", "report")] == [3, 3, 3]
    assert [len(getattr(e, split)) for split in ("train", "choose", "report")] == [2, 2, 2]
    assert {one.answers for one in e.train} == {((5,),)}
    named = [{**row, "split": "heldout" if i < 2 else "train"} for i, row in enumerate(lines(9))]
    (one,) = load_desiderata(write(tmp_path / "named.jsonl", named), model, n_choose=2)
    assert {example.clean for example in one.report} == {(1, 0), (1, 1)}
    assert [len(one.train), len(one.choose)] == [5, 2]


@pytest.mark.parametrize(
    ("rows", "error", "sentence"),
    [
        (
            [*lines(2), {"clean": [1, 7], "corrupted": [2, 7], "answers": 3}],
            BadFile,
            "mine.jsonl:3: the field 'desideratum' is missing",
        ),
        (lines(3, desideratum=5), BadFile, "mine.jsonl:1: 'desideratum' is 5: give a text"),
        (lines(3, corrupted=None), BadFile, "mine.jsonl:1: the field 'corrupted' is missing"),
        (lines(3, desideratun="x"), BadFile, "mine.jsonl:1: unknown field 'desideratun'. Did you mean desideratum"),
        (lines(3, corrupted=[1]), BadTask, "mine.jsonl:1"),
        (lines(2), BadTask, "desideratum 'd' has 2 distinct examples"),
    ],
)
def test_a_bad_file_gets_a_sentence(rows, error, sentence, tmp_path):
    with pytest.raises(error) as caught:
        load_desiderata(write(tmp_path / "mine.jsonl", rows), cd.load_model("toys/induction"))
    assert sentence in str(caught.value)


def test_splits_must_not_share_prompts():
    _, one = toy_desideratum(8)
    with pytest.raises(BadTask, match="is in split 'train' and in 'report'"):
        Desideratum("x", one.train, one.choose, one.train[:1])
    with pytest.raises(BadTask, match="no examples in split 'choose'"):
        Desideratum("x", one.train, (), one.report)
