"""Every listed task, by one common test: a new task is tested by being listed."""

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import bare_model
from transformers import PreTrainedTokenizerFast
from whole_words import byte_level, every_fifth, model_with, sentence_piece

from circuitdisc.errors import BadTask, UnknownName
from circuitdisc.metrics import get_metric
from circuitdisc.tasks import TASKS, Example, Task, load_task
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, draw_examples, drawn_task, pick
from circuitdisc.tasks.encode import encode_examples, one_token_words
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.roles import role_names

DRAWN = [name for name in TASKS if name != "file"]
IN_TEXT = [name for name in DRAWN if name != "induction"]
SMALL = {"n": 12, "n_heldout": 8}
TOKENIZERS = {"byte_level": byte_level, "sentence_piece": sentence_piece}
PAIRS = [(name, kind) for name in DRAWN for kind in TOKENIZERS]
every_pair = pytest.mark.parametrize(("name", "kind"), PAIRS)
every_task = pytest.mark.parametrize("name", DRAWN)


def load(name: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **settings) -> Task:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_task(name, model_with(tokenizer), seed=seed, **{**SMALL, **settings})


def every(task: Task) -> tuple[Example, ...]:
    return (*task.train, *task.heldout)


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[str]:
    """What each token says, without spaces."""
    return [str(tokenizer.decode([token])).strip() for token in tokens]


@every_pair
def test_every_example_is_a_pair_of_one_length_with_answers_apart(name: str, kind: str) -> None:
    task = load(name, TOKENIZERS[kind]())
    assert (len(task.train), len(task.heldout), task.name) == (12, 8, name)
    assert len({one.clean for one in every(task)}) == 20, "no clean prompt in both splits, or twice in one"
    for one in every(task):
        assert one.corrupted is not None
        assert len(one.corrupted) == len(one.clean)
        assert one.corrupted != one.clean
        assert one.positions == (len(one) - 1,)
        (answers,), (wrong,) = one.answers, one.wrong
        assert answers
        assert wrong
        assert not set(answers) & set(wrong)
        assert len(set(answers)) == len(answers)
    assert not get_metric(task.metric).needs_wrong or all(all(one.wrong) for one in every(task))


@every_pair
def test_prompts_are_what_the_text_says(name: str, kind: str) -> None:
    """The ids are those of the text alone, and every answer is one token where it follows it."""
    tokenizer = TOKENIZERS[kind]()
    for one in every(load(name, tokenizer)) if name != "induction" else ():
        assert list(one.clean) == tokenizer(one.text)["input_ids"]
        for token in (*one.answers[0], *one.wrong[0]):
            said = str(tokenizer.decode([*one.clean[-1:], token]))[len(str(tokenizer.decode([one.clean[-1]]))) :]
            assert tokenizer(one.text + said)["input_ids"] == [*one.clean, token]


@every_pair
def test_roles_stand_at_the_ends_of_words_and_are_listed(name: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    task = load(name, tokenizer)
    listed = re.findall(r"`(\w+?)\d*`", importlib.import_module(TASKS[name].module).__doc__ or "")
    roles = role_names(every(task))
    assert roles
    for role in roles:
        assert re.sub(r"\d+$", "", role) in listed, f"{role} is in the task's docstring"
    for one in every(task) if name != "induction" else ():
        for role in roles:
            position = one.roles[role]
            assert 0 <= position < len(one)
            assert pieces(tokenizer, [one.clean[position]])[0], f"{role} stands at a word, not at a space"
            following = str(tokenizer.decode(list(one.clean[position : position + 2]))).strip()
            end = len(pieces(tokenizer, [one.clean[position]])[0])
            assert not following[end : end + 1].isalnum() or role.startswith(("century", "year")), (
                f"{role} is a word's last token"
            )


@every_task
def test_the_seed_is_all_that_changes_the_draw(name: str) -> None:
    first, again, other = (load(name, byte_level(), seed) for seed in (3, 3, 4))
    assert first == again
    assert first.train != other.train


@every_task
def test_heldout_stays_the_same_when_more_are_trained_on(name: str) -> None:
    few, many = (load(name, byte_level(), n=n) for n in (5, 12))
    assert few.heldout == many.heldout
    assert few.train == many.train[:5]


@every_task
def test_settings_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=f"setting of task '{name}' 'colour'"):
        load(name, byte_level(), colour="red")


@pytest.mark.parametrize("name", IN_TEXT)
def test_words_that_are_not_one_token_are_left_out_and_counted(name: str) -> None:
    settings: dict[str, Any] = {"digits": 1} if name == "arithmetic" else {}
    tokenizer = byte_level(without=every_fifth())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task(name, model_with(tokenizer), **SMALL, **settings)
    said = [str(one.message) for one in caught]
    if name != "arithmetic":  # which has no words but numbers
        assert any(re.search(rf"task '{name}': [1-9]\d* of \d+ .* are left out", one) for one in said), said
    assert len(every(task)) == 20


@pytest.mark.parametrize("name", IN_TEXT)
def test_a_model_without_a_tokenizer_is_told_so(name: str) -> None:
    with pytest.raises(BadTask, match=rf"task '{name}' is written in text, but model 'bare' has no tokenizer"):
        load_task(name, bare_model())


# --- what tasks ask of a tokenizer


def test_one_token_words_counts_what_it_leaves_out() -> None:
    for tokenizer in (byte_level(), sentence_piece()):
        with pytest.warns(UserWarning, match=r"task 'x': 2 of 4 things are not one token .* are left out"):
            kept = one_token_words(["keys", "qqkeys", "book", "qqbook"], tokenizer, task="x", kind="things", need=1)
        assert kept == ("keys", "book")


def test_tokens_after_is_what_encoding_both_together_adds() -> None:
    for tokenizer in (byte_level(), sentence_piece()):
        after = tokens_after("The key", [" book", "s", " 7"], tokenizer)
        assert after[1] is None, "'keys' is one word"
        for text, ids in ((" book", after[0]), (" 7", after[2])):
            before = tokenizer("The key", add_special_tokens=False)["input_ids"]
            assert ids is not None
            assert tokenizer(f"The key{text}", add_special_tokens=False)["input_ids"] == [*before, *ids]
    assert tokens_after("The", [" \u1234"], sentence_piece()) == [None], "unknown to it"


def test_a_role_of_one_letter_is_not_the_space_before_it() -> None:
    tokenizer = sentence_piece()
    text = TextExample("8 books", None, (" keys",), roles={"number": (0, 1)})
    (example,) = encode_examples([text], tokenizer)
    assert pieces(tokenizer, [example.clean[example.roles["number"]]]) == ["8"]


def draw_of(prompts: Sequence[tuple[str, str]]) -> Callable[[], TextExample]:
    """Draws the pairs in turn, over and over."""
    texts = cycle(prompts)

    def draw() -> TextExample:
        clean, corrupted = next(texts)
        return TextExample(clean, corrupted, (" book",), (" keys",))

    return draw


def test_prompts_of_unequal_length_are_left_out_and_counted() -> None:
    """Every third pair has a corrupted prompt that is longer."""
    prompts = [(f"The key {i}", f"The book {i}" + " more" * (i % 3 == 0)) for i in range(60)]
    with pytest.warns(UserWarning, match=r"task 'x': (\d+) of (\d+) prompts drawn cannot be used") as caught:
        examples = draw_examples(draw_of(prompts), byte_level(), 30, "x")
    assert [one.text for one in examples] == [clean for i, (clean, _) in enumerate(prompts) if i % 3][:30]
    numbers = re.search(r"(\d+) of (\d+) prompts", str(caught[0].message))
    assert numbers is not None
    assert numbers.groups() == ("17", "50"), "30 and then 20 are drawn; of 0 to 49, every third"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(draw_examples(draw_of(prompts), byte_level(), 40, "x")) == 40
        assert len(draw_examples(draw_of(prompts), byte_level(), 41, "x")) == 40, "all there are"
    with pytest.raises(BadTask, match=r"has \d tokens and the corrupted one"):
        draw_examples(draw_of(prompts[::3]), byte_level(), 5, "x")


@pytest.mark.parametrize("all_fit", [False, True])
def test_a_builder_is_made_of_how_one_example_is_drawn(all_fit: bool) -> None:
    """It takes what all builders take; it deals what is drawn, without the repeated ones, the first to the held-out split."""

    @drawn_task("x", metric="log_prob", all_fit=all_fit)
    def build(setup: Setup, *, words: Names = None, size: int = 40) -> Draw:
        chosen = setup.names("word", words, ("key", "book"))

        def draw(rng: np.random.Generator) -> TextExample:
            number = int(rng.integers(size))
            return TextExample(f"The {pick(rng, chosen)} {number}", f"The cup {number}", (" book",), (" keys",))

        return draw

    shared = ["model", "n", "n_heldout", "seed", "words", "size", "prepend_bos"]
    assert list(inspect.signature(build).parameters) == shared
    task = build(model_with(byte_level()), n=6, n_heldout=3, seed=5, words="key")
    rng, texts = np.random.default_rng(5), list[str]()
    while len(texts) < 9:
        number, _ = int(rng.integers(40)), rng.integers(1)
        texts += [text] if (text := f"The key {number}") not in texts else []
    assert [example.text for example in (*task.heldout, *task.train)] == texts
    assert (len(task.train), task.metric) == (6, "log_prob")
    with pytest.raises(UnknownName, match="unknown word of task 'x' 'pen'"):
        build(model_with(byte_level()), n=6, n_heldout=3, seed=5, words="pen")
    fewer = build(model_with(byte_level()), n=6, n_heldout=3, seed=5, size=2)
    assert (len(fewer.train), len(fewer.heldout)) == (3, 1), "four prompts, in the proportion asked for"
    assert len({example.clean for example in (*fewer.train, *fewer.heldout)}) == 4
    with pytest.raises(BadTask, match="task 'x' has 1 different prompts with these settings, and needs two"):
        build(model_with(byte_level()), n=6, n_heldout=3, seed=5, size=1, words="key")


# --- the page


@every_task
def test_the_page_has_a_row_with_the_tasks_roles_and_settings(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    listed = {re.sub(r"\d+$", "", word) for word in re.findall(r"`(\w+)`", row)}
    roles = {re.sub(r"\d+$", "", role) for role in role_names(every(load(name, byte_level())))}
    assert roles <= listed
    assert set(TASKS[name].settings) - {"prepend_bos"} <= listed
