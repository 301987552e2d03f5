"""`circuitdisc tasks check` against each prompt run by itself; its table, its verdicts, its folder."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.discovery.presearch import CorruptionGap
from circuitdisc.errors import BadSetting, MetricAtChance, UnknownName
from circuitdisc.jobs import task_checks
from circuitdisc.jobs.task_checks import TaskCheck, constant_accuracy, describe_checks
from circuitdisc.pages.description import description_text
from circuitdisc.tasks import TASKS, Example

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_figures_are_those_of_each_prompt_run_alone(lightweight) -> None:
    checked = cd.check_tasks(lightweight, ["tpp", "induction", "ioi"], n=30, seed=2)
    assert [check.task for check in checked.checks] == ["tpp", "induction", "ioi"]
    for check in checked.checks[:2]:
        task = cd.load_task(check.task, lightweight, n=15, n_heldout=15, seed=2)
        examples = (*task.heldout, *task.train)
        clean, corrupted = [], []
        for one in examples:
            for ids, values in ((one.clean, clean), (one.corrupted or (), corrupted)):
                tokens = torch.tensor([ids])
                values.append(lightweight.own_logits(tokens, torch.ones_like(tokens), torch.arange(len(ids))[None])[0, -1])

        def diff(logits, one: Example) -> float:
            return float(logits[list(one.answers[0])].mean() - logits[list(one.wrong[0])].mean())

        both = list(zip(clean, corrupted, examples, strict=True))
        apart = torch.tensor([diff(c, one) - diff(x, one) for c, x, one in both], dtype=torch.float64)
        assert check.n == check.asked == len(examples) == 30
        assert check.accuracy == sum(int(c.argmax()) in one.answers[0] for c, _, one in both) / 30
        assert check.pair_accuracy == sum(diff(c, one) > 0 for c, _, one in both) / 30
        assert check.clean == pytest.approx(sum(diff(c, one) for c, _, one in both) / 30)
        assert check.corrupted == pytest.approx(sum(diff(x, one) for _, x, one in both) / 30)
        assert (check.gap, check.error) == pytest.approx((float(apart.mean()), 2 * float(apart.std()) / 30**0.5))
    assert checked.checks[0].why == "yes"
    assert checked.checks[0].metric == "logit_diff"
    assert checked.worth_a_search()[0] == "tpp"


def test_a_task_is_worth_a_search_where_discover_would_search_it(lightweight) -> None:
    (check,) = cd.check_tasks(lightweight, "induction", n=40).checks
    task = cd.load_task("induction", lightweight, n=20, n_heldout=20)
    whole = replace(task, train=(*task.heldout, *task.train))
    if check.worth:
        cd.discover(lightweight, whole, "random", ablation="resample")
    else:
        assert check.why.startswith("no: does not do it (logit_diff")
        with pytest.raises(MetricAtChance):
            cd.discover(lightweight, whole, "random", ablation="resample")


def test_a_task_that_does_not_fit_is_a_line_with_its_sentence(lightweight) -> None:
    checked = cd.check_tasks(lightweight, n=8)
    assert [check.task for check in checked.checks] == [name for name in TASKS if name != "file"]
    unfit = {check.task: check for check in checked.checks if check.metric is None}
    assert set(unfit) >= {"ioi", "rephrase", "factual_recall"}
    assert all((check.n, check.worth, check.accuracy, check.gap) == (0, False, None, None) for check in unfit.values())
    assert re.match(r"task 'ioi' needs 5 names that are one token each", unfit["ioi"].why)
    shown = description_text(describe_checks(checked))
    assert re.search(r"^ioi +0 of 8 .* no: does not fit \(below\)$", shown, re.MULTILINE)
    assert "ioi does not fit: task 'ioi' needs 5 names" in shown
    assert re.search(r"^tpp +8 of 8 +logit_diff .* with care: few examples$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("gap", "accuracy", "n", "worth", "why"),
    [
        (None, 0.9, 50, True, "yes, without resample: it has no corrupted prompts"),
        (CorruptionGap(2.0, 1.9, 0.1, 0.2, 50), 0.9, 50, False, "no: corrupted prompts take nothing away"),
        (CorruptionGap(2.0, 3.0, -1.0, 0.2, 50), 0.9, 50, False, "no: corrupted prompts raise the metric"),
        (CorruptionGap(2.07, 1.7, 0.37, 0.2, 50), 0.9, 50, True, "with care: corrupted prompts take only 17.9 % away"),
        (CorruptionGap(2.0, 1.0, 1.0, 0.2, 50), 0.1, 50, True, "with care: prefers the right answer, but says another"),
        (CorruptionGap(2.0, 1.0, 1.0, 0.2, 5), 0.9, 5, True, "with care: few examples"),
        (CorruptionGap(2.0, 1.0, 1.0, 0.2, 50), 0.9, 50, True, "yes"),
        (CorruptionGap(2.0, 1.0, 1.0, 0.2, 50), 0.6, 50, True, "yes"),
    ],
)
def test_the_verdict_in_a_few_words(gap: CorruptionGap | None, accuracy: float, n: int, worth: bool, why: str) -> None:
    assert task_checks._worth(gap, accuracy, 0.1 if accuracy != 0.6 else 1.0, n) == (worth, why)


def test_chance_is_the_best_constant_answer() -> None:
    """Token 4 is right in three of four examples, once beside token 5; of an example read twice each place counts half."""
    answers = [((4,),), ((4, 5),), ((5,),), ((4,), (6,))]
    examples = [Example((1, 2), None, tuple(range(len(each))), each, tuple(() for _ in each)) for each in answers]
    assert constant_accuracy(examples) == 2.5 / 4


def test_what_cannot_be_checked_ends_the_call(lightweight) -> None:
    with pytest.raises(UnknownName, match=r"unknown task 'ioj'. Did you mean ioi"):
        cd.check_tasks(lightweight, ["tpp", "ioj"])
    with pytest.raises(BadSetting, match="has no chat template"):
        cd.check_tasks(lightweight, "tpp", chat_template=True)
    with pytest.raises(BadSetting, match="n=1 must be a whole number from 2"):
        cd.check_tasks(lightweight, "tpp", n=1)


def test_the_command_prints_its_table_and_leaves_a_folder_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.jsonl"
    lines = [{"clean": [i, 5, 6], "corrupted": [i, 6, 5], "answers": 7, "wrong": 8} for i in range(10, 34)]
    own.write_text("\n".join(map(json.dumps, lines)))
    line = ["tasks", "check", "model=tpp/lightweight", "tasks=tpp,ioi,own.jsonl", "n=20", "threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitdisc.progress.SECONDS", 0.0)  # a log has every line of a bar
        assert main(line) == 0
    printed = capsys.readouterr()
    assert re.search(r"^tpp +20 of 20 .* yes$", printed.out, re.MULTILINE)
    assert re.search(r"^own.jsonl +24 of 24 ", printed.out, re.MULTILINE)
    assert "ioi does not fit" in printed.out
    assert "own.jsonl" in printed.err, "a bar names the task"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl"]
    assert main([*line, "out=out", "--quiet"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "result.json", "tasks.csv"]
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["format"] == "circuitdisc.tasks_check"
    with (tmp_path / "out" / "tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    checks = record["result"]["checks"]
    assert [row["task"] for row in rows] == [check["task"] for check in checks] == ["tpp", "ioi", "own.jsonl"]
    assert rows[1]["accuracy"] == ""
    assert float(rows[0]["gap"]) == checks[0]["gap"]
    again = TaskCheck.from_dict(checks[0])
    assert again.to_dict() == checks[0]
    assert main([*line, "out=out"]) == 2
    assert "out" in capsys.readouterr().err
    assert main(["tasks", "chekc"]) == 2
    assert "Did you mean check" in capsys.readouterr().err
