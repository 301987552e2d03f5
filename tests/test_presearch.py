"""Corrupted prompts that take nothing away are named before a search, on the page and in the circuit's provenance."""

import warnings
from dataclasses import replace

import pytest
import torch
from examples import random_task
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery import presearch
from circuitdisc.discovery.presearch import clean_and_corrupted, corruption_notes
from circuitdisc.discovery.registry import discover
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import CircuitdiscWarning, NothingToExplain
from circuitdisc.metrics import METRICS
from circuitdisc.models import Model
from circuitdisc.tasks.base import Example, Task


def plain_logit_diff(model: Model, example: Example, tokens: tuple[int, ...]) -> float:
    """One prompt at a time, without padding: right minus wrong, averaged over the positions."""
    ids = torch.tensor([tokens])
    logits = model.own_logits(ids, torch.ones_like(ids), torch.arange(len(tokens))[None])[0].double()
    return sum(
        float(logits[position, list(right)].mean() - logits[position, list(wrong)].mean())
        for position, right, wrong in zip(example.positions, example.answers, example.wrong, strict=True)
    ) / len(example.positions)


@pytest.mark.parametrize("family", ["gpt2", "llama", "attention_only"])
def test_clean_and_corrupted_are_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to one prompt at a time, and to the full and the empty circuit; however many examples fit at once."""
    model = model_of(family)
    task = random_task(model, 7)
    for at_once in (3, 100):
        monkeypatch.setattr(presearch, "examples_that_fit", lambda *_, n=at_once: n)
        both = clean_and_corrupted(model, task.train, [METRICS["logit_diff"], METRICS["accuracy"]])
        for values, kind in zip(both, ("clean", "corrupted"), strict=True):
            slow = [plain_logit_diff(model, one, getattr(one, kind)) for one in task.train]
            torch.testing.assert_close(values["logit_diff"], torch.tensor(slow, dtype=torch.float64), atol=1e-10, rtol=0)
    masks = {"full": model.graph.edge_mask, "empty": Circuit.empty(model.graph).mask}
    for name in ("logit_diff", "log_prob", "kl"):
        ends = Patching(model, Ablation("resample"), task.train).evaluate(task.train, masks, [METRICS[name]])
        for values, end in zip(clean_and_corrupted(model, task.train, [METRICS[name]]), masks, strict=True):
            torch.testing.assert_close(values[name], ends[end][name].double(), atol=1e-6, rtol=0)


def said_of(monkeypatch: pytest.MonkeyPatch, clean: list[float], corrupted: list[float], allowed: bool = True) -> list[str]:
    """What is said of these values before a search."""
    values = [{"logit_diff": torch.tensor(each, dtype=torch.float64)} for each in (clean, corrupted)]
    monkeypatch.setattr(presearch, "clean_and_corrupted", lambda *_: values)
    model, how = model_of("attention_only"), (Ablation("resample"), METRICS["logit_diff"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notes = corruption_notes(model, random_task(model, 3), *how, allow_nothing=allowed)
    assert [str(one.message) for one in caught] == list(notes)
    assert all(one.category is CircuitdiscWarning for one in caught)
    return list(notes)


def test_the_gap_is_held_against_two_standard_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps 1, 2, 3, 2: mean 2, standard error .408. Pairs count: a spread that both have in common is no noise."""
    base = [5.0, -40.0, 0.0, 30.0]
    for shift, is_noise, is_refused in ((0.0, 0, 0), (-1.1, 0, 0), (-1.2, 1, 1), (-2.8, 1, 1), (-2.9, 1, 0), (-3.0, 1, 0)):
        gaps = [1 + shift, 2 + shift, 3 + shift, 2 + shift]
        clean = [b + gap for b, gap in zip(base, gaps, strict=True)]
        notes = said_of(monkeypatch, clean, base)
        assert bool(notes) is bool(is_noise)
        if is_refused:
            with pytest.raises(NothingToExplain, match=r"take nothing measurable away: .* set allow_chance=true"):
                said_of(monkeypatch, clean, base, allowed=False)
        else:
            assert said_of(monkeypatch, clean, base, allowed=False) == notes
    assert "logit_diff of the clean prompts' answers is -2.25 on the clean and -1.25 on the corrupted prompts" in notes[0]
    assert "4 train examples; the gap is -1 ± 0.82" in notes[0]
    assert len(notes[0]) < 500
    assert said_of(monkeypatch, [1.0, 1.0], [1.0, 1.0]), "no change at all is no gap either"
    with pytest.raises(NothingToExplain, match="nothing for a circuit to explain"):
        said_of(monkeypatch, [1.0, 1.0], [1.0, 1.0], allowed=False)


def test_little_is_said_to_be_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap of 1.8 in 10 can be told from 0 and is less than a fifth; one of 2.2 is more."""
    clean = [9.0, 10.0, 10.0, 11.0]
    (note,) = said_of(monkeypatch, clean, [value - 1.8 for value in clean], allowed=False)
    assert "take only 18 % away" in note
    assert said_of(monkeypatch, clean, [value - 2.2 for value in clean], allowed=False) == []


def test_a_search_under_resample_ablation_says_so(lightweight) -> None:
    """Corrupted prompts of another example's nouns take the answer away; the clean prompt but for its last sign does not."""
    import circuitdisc as cd

    task = cd.load_task("tpp", lightweight, n=20, n_heldout=5)
    found = discover(lightweight, task, "random", ablation="resample")
    assert found.circuit.provenance.notes == task.notes

    def harmless(example: Example) -> Example:
        changed = list(example.clean)
        changed[0] = changed[0] + 1  # the first word, which the answer does not hang on
        return replace(example, corrupted=tuple(changed))

    same = Task("harmless", tuple(map(harmless, task.train)), task.heldout)
    clean, corrupted = (of["logit_diff"] for of in clean_and_corrupted(lightweight, same.train, [METRICS["logit_diff"]]))
    assert abs(float((clean - corrupted).mean())) < 0.05 * float(clean.mean())
    flat = Task("flat", tuple(replace(one, answers=one.wrong, wrong=one.answers) for one in same.train), same.heldout)
    with pytest.warns(CircuitdiscWarning, match="the corrupted prompts of task 'flat' take nothing measurable away"):
        found = discover(lightweight, flat, "random", ablation="resample", allow_chance=True)
    assert found.circuit.provenance.notes[0].startswith("the corrupted prompts of task 'flat' take nothing measurable away")
    assert Circuit.from_dict(found.circuit.to_dict()).provenance.notes == found.circuit.provenance.notes
    for ablation in ("mean", "zero"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert discover(lightweight, flat, "random", ablation=ablation, allow_chance=True).circuit.provenance.notes == ()
