"""What prompts with numbers say, greater_than and arithmetic: answers and roles are found again from the text alone."""

import json
import re
from fractions import Fraction
from typing import Any

import pytest
from task_texts import N, at, corrupted, differing, load, said
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from whole_words import byte_level, model_with, sentence_piece

from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.tasks import load_task
from circuitdisc.tasks.library.greater_than import CENTURIES
from circuitdisc.tasks.library.greater_than import NOUNS as LASTING

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# --- greater_than


def test_greater_than_asks_for_every_later_year_and_no_other() -> None:
    task = load("greater_than")
    assert task.metric == "prob_diff"
    for one in task.train:
        start, century = re.findall(r"\d+", one.text)
        assert one.text.endswith(f"the year {century}")
        assert start[:2] == century
        assert century in CENTURIES
        answers, wrong = (sorted(int(ending) for ending in said(tokens)) for tokens in (one.answers[0], one.wrong[0]))
        assert answers == [ending for ending in range(100) if ending > int(start[2:])]
        assert wrong == [ending for ending in range(100) if ending <= int(start[2:])]
        assert re.findall(r"\d+", corrupted(one)) == [f"{century}01", century]
        assert differing(one) == [one.roles["year"]]
        assert [at(one, role) for role in ("century1", "year", "century2", "end")] == [century, start[2:], century, century]
        assert at(one, "noun") in LASTING
        assert at(one, "year-1") == century


def test_greater_than_counts_years_that_are_one_token_and_leaves_them_out() -> None:
    """A tokenizer that knows 1732 and 1601 by themselves, and so their first three digits."""
    backend = json.loads(byte_level().backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    chains = [[(f"Ġ{year[:end]}", year[end]) for end in range(4)] for year in ("1732", "1601")]
    for left, right in (pair for chain in chains for pair in chain):
        vocabulary.setdefault(left + right, len(vocabulary))
    merges = [*(pair for chain in chains for pair in chain), *(tuple(pair) for pair in backend["model"]["merges"])]
    backend["model"]["merges"] = [list(pair) for pair in dict.fromkeys(merges)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    # 173 followed by another digit than 2 is a token and one digit, and so is 160: ten years of each century fall out
    with pytest.warns(
        UserWarning, match=r"task 'greater_than': 110 of 700 years are not written as a beginning and one token of 2 "
    ):
        task = load_task("greater_than", model_with(tokenizer), n=N)
    for one in task.train:
        start, century = re.findall(r"\d+", one.text)
        assert century != "16", "the corrupted prompt needs its 01"
        endings = {int(ending) for ending in said((*one.answers[0], *one.wrong[0]), tokenizer)}
        assert endings == set(range(100)) - (set(range(30, 40)) if century == "17" else set())
        assert century != "17" or not start.startswith("173")


@pytest.mark.parametrize("tokenizer", [byte_level(two_digits=False), sentence_piece()], ids=["byte-level", "space marks"])
def test_greater_than_reads_the_last_digit_of_a_tokenizer_that_splits_years(tokenizer: PreTrainedTokenizerFast) -> None:
    task = load("greater_than", tokenizer)
    assert not any("years are not" in sentence for sentence in task.notes), "all 700 can be used"
    for one in task.train:
        start, decade = re.findall(r"\d+", one.text)
        assert one.text.endswith(f"the year {decade}")
        assert start[:3] == decade
        assert decade[:2] in CENTURIES
        answers, wrong = (sorted(map(int, said(tokens, tokenizer))) for tokens in (one.answers[0], one.wrong[0]))
        assert 2 <= int(start[3]) <= 8
        assert answers == list(range(int(start[3]) + 1, 10))
        assert wrong == list(range(int(start[3]) + 1))
        assert re.findall(r"\d+", corrupted(one, tokenizer)) == [f"{decade}1", decade]
        assert differing(one) == [one.roles["year"]]
        digits = [at(one, role, tokenizer) for role in ("century1", "year", "century2", "end")]
        assert digits == [decade[2], start[3], decade[2], decade[2]]


def test_greater_than_says_how_a_tokenizer_without_digits_writes_years() -> None:
    with pytest.raises(
        BadTask, match=r"needs years whose last two digits, or last digit, .* writes 1732 as a word it does not"
    ):
        load("greater_than", without_numbers())


# --- arithmetic

SIGNS = {"+": "+", "-": "-", "*": "*", "/": "/", "plus": "+", "minus": "-", "times": "*", "over": "/"}
NAMES_OF_SIGNS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


def compute(first: int, sign: str, second: int) -> Fraction:
    return {"+": Fraction(first + second), "-": Fraction(first - second), "*": Fraction(first * second)}.get(
        sign, Fraction(first, second)
    )


def parse(text: str) -> tuple[int, str, int]:
    first, sign, second, equals = re.findall(r"\d+|[^\d\s]+", text)
    assert equals == ("=" if sign in "+-*/<" else "equals")
    return int(first), sign, int(second)


@pytest.mark.parametrize("style", ["symbols", "words"])
def test_arithmetic_asks_for_the_result_and_corruption_changes_one_operand(style: str) -> None:
    groups = set()
    for one in load("arithmetic", style=style).train:
        first, sign, second = parse(one.text)
        result = compute(first, SIGNS[sign], second)
        assert said(one.answers[0]) == [str(result)]
        assert result >= 0
        assert 1 <= min(first, second) <= max(first, second) <= 99
        first2, sign2, second2 = parse(corrupted(one))
        assert sign2 == sign
        assert (first2 != first) + (second2 != second) == 1
        assert (len(str(first2)), len(str(second2))) == (len(str(first)), len(str(second)))
        assert said(one.wrong[0]) == [str(compute(first2, SIGNS[sign], second2))] != [str(result)]
        assert [at(one, role) for role in ("operand1", "operator", "operand2", "equals")] == one.text.split()
        assert one.group == NAMES_OF_SIGNS[SIGNS[sign]]
        groups.add(one.group)
    assert groups == set(NAMES_OF_SIGNS.values())


@pytest.mark.parametrize(("style", "sign"), [("symbols", "<"), ("words", "or")])
def test_arithmetic_can_ask_for_no_computation(style: str, sign: str) -> None:
    for one in load("arithmetic", style=style, corruption="operator").train:
        first, own, second = parse(one.text)
        assert corrupted(one) == one.text.replace(f" {own} ", f" {sign} ")
        others = {compute(first, each, second) for each in "+-*/" if each != SIGNS[own]} - {compute(first, SIGNS[own], second)}
        (wrong,) = said(one.wrong[0])
        assert Fraction(int(wrong)) in others


def test_arithmetic_keeps_to_its_settings() -> None:
    task = load("arithmetic", operators=["add", "divide"], digits=1)
    assert {one.group for one in task.train} == {"add", "divide"}
    assert all(max(first, second) <= 9 for first, _, second in (parse(one.text) for one in task.train))
    assert len({parse(one.text)[0] for one in load("arithmetic", digits=1).train}) == 9, "every number from 1"
    below = load("arithmetic", operators="subtract", negative=True, first_token=True)
    results = {compute(first, "-", second) for first, _, second in (parse(one.text) for one in below.train)}
    assert min(results) < 0 < max(results)
    for one in below.train:
        first, _, second = parse(one.text)
        assert said(one.answers[0])[0].isdigit() == (first >= second), "below 0 the sign is the first token"
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"digits": 4}, BadSetting, r"digits=4 must be a whole number from 1 to 3"),
        ({"operators": ["adds"]}, UnknownName, r"operator of task 'arithmetic' 'adds'. Did you mean add"),
        ({"style": "prose"}, UnknownName, r"style of task 'arithmetic' 'prose'"),
        ({"corruption": "operands"}, UnknownName, r"Did you mean operand"),
        ({"spaces": False, "style": "words"}, BadSetting, r"spaces=false writes 3\+5= and cannot be used with style=words"),
    ]
    for settings, error, sentence in bad:
        with pytest.raises(error, match=sentence):
            load("arithmetic", **settings)


def test_arithmetic_draws_all_the_sums_there_are_and_says_so() -> None:
    """Of the sums of two digits a brute-force count says how many have a result and a partner; two in three are held out."""
    numbers = range(1, 10)
    sums = {(x, y): x + y for x in numbers for y in numbers}
    with pytest.warns(
        UserWarning, match=r"has about 81 different prompts .* 300 are asked for .*: it has 27 for the search and 54"
    ):
        task = load_task("arithmetic", model_with(byte_level()), n=100, n_heldout=200, digits=1, operators="add")
    splits = [{parse(one.text) for one in split} for split in (task.train, task.heldout)]
    assert splits[0] | splits[1] == {(x, "+", y) for x, y in sums}
    assert not splits[0] & splits[1]
    assert [len(split) for split in splits] == [27, 54]
    assert (task.settings["n"], task.settings["n_heldout"]) == (27, 54)


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["byte-level", "space marks"])
def test_arithmetic_without_spaces_is_answered_without_one(tokenizer: PreTrainedTokenizerFast) -> None:
    for one in load("arithmetic", tokenizer, spaces=False).train:
        assert re.fullmatch(r"\d+[-+*/]\d+=", one.text)
        (answer,) = one.answers[0]
        assert (
            str(tokenizer.decode([*one.clean, answer])).replace("<s>", "").strip() == f"{one.text}{compute(*parse(one.text))}"
        )
        shown = [at(one, role, tokenizer) for role in ("operator", "equals", "end")]
        assert shown == [parse(one.text)[1], "=", "="]


def test_arithmetic_with_a_tokenizer_that_spaces_numbers_ends_in_that_space() -> None:
    tokenizer = sentence_piece()
    for one in load("arithmetic", tokenizer).train:
        assert one.text.endswith("= ")
        first, sign, second = parse(one.text)
        assert said(one.answers[0], tokenizer) == [str(compute(first, sign, second))], "results of one digit alone"
        shown = [at(one, role, tokenizer) for role in ("operand1", "operator", "operand2", "equals", "end")]
        assert shown == [str(first)[-1], sign, str(second)[-1], "=", ""]
    longer = load("arithmetic", tokenizer, first_token=True)
    results = [compute(*parse(one.text)) for one in longer.train]
    assert max(results) > 9
    assert [said(one.answers[0], tokenizer) for one in longer.train] == [[str(result)[0]] for result in results]
    with pytest.raises(BadTask, match=r"no sums with operator 'add', .* first_token=True"):
        load("arithmetic", without_numbers(), operators="add")


def without_numbers() -> PreTrainedTokenizerFast:
    """Whole numbers and unknown ones: a word-level tokenizer that knows the operands 1 to 9 but no result."""
    backend = Tokenizer(WordLevel({"[UNK]": 0, "=": 1, "+": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
