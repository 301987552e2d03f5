"""Backups: against whole masked runs, planted ones, models without any, and the command."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import TINY_RUN, random_task
from models import shared
from reference import masked_run
from scipy import stats

from circuitdisc.ablation import Ablation
from circuitdisc.certainty.backups import Backups, above_zero, backups
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.engine.parts import without
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadRun, BadSetting, UnknownName
from circuitdisc.metrics import get_metric
from circuitdisc.pages.backups import backups_part, backups_verdict
from circuitdisc.stats import partition

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
campaign: Any = import_module("backups")

FEW: dict[str, Any] = {"n_judged": 3, "n_random": 4}


class Slow:
    """Metric values without sets of parts, each by a masked run of the whole model."""

    def __init__(self, model, task, kind):
        self.model, self.metric = model, get_metric("logit_diff")
        patching = Patching(model, Ablation(kind), task.train)
        self.chunks = {split: patching.hold(task.split(split)) for split in ("train", "heldout")}

    def values(self, mask, gone=(), split="heldout"):
        left = torch.tensor(without(self.model.graph, mask, gone))
        (chunk,) = self.chunks[split]
        return chunk.batch.per_example(self.metric(masked_run(self.model, chunk, left), chunk.labels)).numpy()

    def growth(self, pair, mask, split="heldout"):
        both = (pair.part, *pair.others)
        part, others, nothing, both = (self.values(mask, gone, split) for gone in ((pair.part,), pair.others, (), both))
        return part + others - nothing - both


@pytest.mark.parametrize(("family", "by", "kind"), [("parallel", "head", "resample"), ("layer_norm_gated", "edge", "zero")])
def test_every_figure_is_that_of_whole_masked_runs(family, by, kind):
    model = shared(family)
    task, graph = random_task(model, 5), model.graph
    heads = ["a0.h1", "a0.h3", "a1.h0"]
    names = ["input->a0.h0<v>", "input->a0.h1<k>", "a0.h0->a1.h1<v>", "a0.h1->a1.h1<k>", "a1.h1->logits"]
    circuit = Circuit.from_heads(graph, heads) if by == "head" else Circuit.from_edges(graph, names)
    result = backups(model, task, circuit, by=by, outside="each", ablation=kind, **FEW)
    slow, full = Slow(model, task, kind), graph.edge_mask
    assert result.n_pairs == (3 + 5 + 15 if by == "head" else 10)
    growths = []
    for pair in (*result.pairs, *result.random):
        other = slow.growth(pair, full)
        alone = slow.values(full) - slow.values(full, (pair.part,))
        later = slow.values(full, pair.others) - slow.values(full, (pair.part, *pair.others))
        assert pair.growth == pytest.approx(other.mean(), abs=1e-9)
        assert (pair.effect, pair.without) == (pytest.approx(alone.mean(), abs=1e-9), pytest.approx(later.mean(), abs=1e-9))
        assert pair.growth == pytest.approx(pair.others_without - pair.others_effect, abs=1e-9), "the same from both sides"
        assert pair.searched == pytest.approx(slow.growth(pair, full, "train").mean(), abs=1e-9)
        growths.append(pair.searched)
    assert result.growths["most"] >= max(growths) - 1e-9
    empty = Circuit.from_heads(graph, []) if by == "head" else Circuit.empty(graph)
    reach = slow.values(full, split="train").mean() - slow.values(empty.mask, split="train").mean()
    assert result.bar == pytest.approx(0.05 * abs(reach))
    assert [gap.kind for gap in result.gaps] == ["empty", "pair", "pair", "pair"]
    for gap in result.gaps:
        assert gap.full == pytest.approx(slow.values(full, gap.removed).mean(), abs=1e-9)
        assert gap.circuit == pytest.approx(slow.values(circuit.mask, gap.removed).mean(), abs=1e-9)
    pairs, judgement, search = result.forwards.values()
    assert search is None
    assert 0 < (pairs or 0) < 5 * (result.n_pairs * 4 + 20) * 2
    assert 0 < (judgement or 0) < 5 * (7 * 4 + 20) * 2


@pytest.mark.parametrize("inside", [True, False])
def test_a_planted_backup_is_found_and_nothing_else_is(inside):
    own, others, result = campaign.judged(0, "backup", inside)
    assert (own, others) == (True, 0)
    assert result.pairs[0].growth > 1
    for kind in ("none", "coin", "serial", "negative"):
        assert campaign.judged(1, kind, inside)[:2] == (False, 0), kind


@pytest.mark.slow
def test_the_campaign():
    for line in campaign.rows(20):
        kind, _, named, others, *_ = line
        assert named.startswith("20 of 20" if kind == "backup" else "0 of 20")
        assert others.startswith("0 of 20")


def student(values):
    return stats.t.sf(values.mean() / stats.sem(values), len(values) - 1)


def test_the_test_of_a_mean():
    generator = np.random.default_rng(0)
    values = generator.normal(0.2, 1, 40)
    even = np.concatenate([values - values.mean(), values.mean() - values]) + 0.1  # no skewness: Student's
    assert above_zero(even, partition(80)) == pytest.approx(student(even))
    left = -generator.exponential(size=40) + 1.3
    assert above_zero(left, partition(40)) > student(left)
    twice = np.repeat(values, 2)
    assert above_zero(twice, partition(80, np.repeat(np.arange(40), 2).tolist())) == pytest.approx(
        above_zero(values, partition(40))
    )
    assert above_zero(np.ones(9), partition(9)) == 0
    assert above_zero(np.zeros(9), partition(9)) == 1
    assert above_zero(np.ones(1), partition(1)) == 1


def test_a_killed_call_goes_on_to_the_same_result(tmp_path, monkeypatch):
    model, task, marks, beside, others = campaign.planted(2, "backup")
    circuit = Circuit.from_heads(model.graph, [marks, beside, others[0]])

    def find(journal):
        return backups(model, task, circuit, ablation="zero", journal=journal, **FEW)

    whole = find(None)
    journal = tmp_path / "journal.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("circuitdisc.certainty.pairs.PairRuns.values", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            find(journal)
    again = find(journal)
    assert again.pairs == whole.pairs
    assert again.forwards["pairs"] == pytest.approx(whole.forwards["pairs"])
    with pytest.raises(BadRun, match="another ablation"):
        backups(model, task, circuit, ablation="mean", journal=journal, **FEW)


def test_words():
    *_, result = campaign.judged(0, "backup", False)
    beside = campaign.planted(0, "backup")[3]
    lines = backups_verdict(result).lines
    assert lines[0].startswith(f"All 4 heads of the circuit are backed up by {beside}: the effect of {beside} grows from ")
    assert lines[0].endswith(" once they are ablated.")
    assert "random pairs" in lines[-1]
    part = backups_part(Backups.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))))
    assert (part.title, part.rows[0][0], part.rows[0][-1]) == ("Redundancy", beside, "yes")
    none = replace(result, pairs=tuple(replace(pair, backup=False) for pair in result.pairs), bounded=True)
    assert backups_verdict(none).headline == f"No backup found among {result.n_pairs} pairs."
    assert "has a ceiling" in backups_verdict(none).caveats[0]


def test_bad_input(monkeypatch):
    model, task, *_ = campaign.planted(0, "none")
    with pytest.raises(UnknownName, match="by"):
        backups(model, task, Circuit.from_heads(model.graph, ["a0.h0"]), by="node", ablation="zero")
    with pytest.raises(BadSetting, match="no pair can be made"):
        backups(model, task, Circuit.from_heads(model.graph, ["a0.h0"]), outside="none", ablation="zero")
    monkeypatch.setattr("circuitdisc.certainty.pairs.MOST_PAIRS", 10)
    with pytest.raises(BadSetting, match="1 heads make 11 pairs, over 10"):
        backups(model, task, Circuit.from_heads(model.graph, ["a0.h0"]), ablation="zero")


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    search = [word.replace("=random", "=eap") for word in TINY_RUN]
    assert main([*search, "algorithm.edges=200", "explorer=false", f"out={run}"]) == 0
    capsys.readouterr()
    assert main(["backups", str(run), "n_judged=2", "n_random=2", "progress=false"]) == 0
    out = capsys.readouterr().out
    assert "Forward passes of a prompt: " in out
    assert "times the run's own search" in out
    assert "backup" in out.split("verdict\n")[1]
    record = json.loads((run / "backups.json").read_text())
    assert record["format"] == "circuitdisc.backups"
    assert len(record["pairs"]) == len(record["random"]) == 2
    assert "<h3>Redundancy</h3>" in (run / "report.html").read_text()
    assert not list(run.glob("*.partial.jsonl"))
    record["pairs"][0]["growth"] = "much"
    (run / "backups.json").write_text(json.dumps(record))
    assert main(["report", str(run)]) == 2
    assert "`circuitdisc backups RUN` writes it again" in capsys.readouterr().err
    assert main(["backups", str(run), "n_judged=0"]) == 2
    assert "n_judged=0 must be a whole number from 1 to 1,000" in capsys.readouterr().err
