"""A token too many or too few: BOS and EOS, padding, spaces; with tokenizers that treat them in the ways that real ones do.

Each is right (the ids that the tokenizer itself gives for the text written well), or refused, or noted with the tokens shown.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from spaces import Rows, all_examples, gpt2_like, ids_of, llama_like, load, only, padding_by_itself, pairs, refused, uncased
from transformers import PreTrainedTokenizerFast
from whole_words import sentence_piece

from circuitdisc.errors import BadSetting
from circuitdisc.tasks.encode import special_prefix

START, END = "<|im_start|>", "<|im_end|>"


# --- BOS and EOS

ADDING = {
    "byte-level": (gpt2_like(f"{START} $A"), START),
    "byte-level, with EOS": (gpt2_like(f"{START} $A {END}"), START),
    "space marks": (llama_like("<s> $A"), "<s>"),
    "space marks, with EOS": (llama_like("<s> $A </s>"), "<s>"),
    "whole words, with SEP": (uncased(), "[CLS]"),
}


@pytest.mark.parametrize("kind", ADDING)
def test_bos_stands_once_whoever_writes_it(tmp_path: Path, kind: str) -> None:
    """The tokenizer adds it; the text has it; both do; only the corrupted prompt has it: one and the same ids."""
    tokenizer, bos = ADDING[kind]
    answers = [ids_of(tokenizer, " cold"), ids_of(tokenizer, " short")]
    for before, own in (("", True), (bos, False)):
        task, notes = load(tmp_path, pairs(before), tokenizer)
        for one in all_examples(task):
            right = [tokenizer.bos_token_id, *ids_of(tokenizer, one.text.removeprefix(bos))]
            assert list(one.clean) == right
            assert one.corrupted is not None
            assert one.corrupted[0] == right[0] != one.corrupted[1]
            assert one.positions == (len(right) - 1,)
            assert [list(one.answers[0]), list(one.wrong[0])] in (answers, answers[::-1])
        if own:
            assert not notes
        else:
            assert f"{bos!r} [{tokenizer.bos_token_id}]" in only(notes, "\\d prompts already begin with")
    mixed = [{**row, "corrupted": bos + row["corrupted"]} for row in pairs()]
    task, notes = load(tmp_path, mixed, tokenizer)
    plain, _ = load(tmp_path, pairs(), tokenizer)
    assert all_examples(task) == all_examples(plain)
    only(notes, "\\d prompts already begin with")


def test_positions_and_roles_count_a_bos_that_the_text_has(tmp_path: Path) -> None:
    tokenizer = llama_like()
    rows = [{**row, "roles": {"who": row["clean"].split()[1], "first_word": 1}} for row in pairs()]
    typed = [{**row, "clean": "<s>" + row["clean"]} for row in rows]
    for position in (-1, -2, 2, 0):
        here = [{**row, "positions": position} for row in rows]
        there = [{**row, "positions": position} for row in typed]
        one, other = (all_examples(load(tmp_path, lines, tokenizer)[0]) for lines in (here, there))
        for mine, its in zip(one, other, strict=True):
            assert (mine.clean, mine.roles, mine.positions, mine.answers) == (its.clean, its.roles, its.positions, its.answers)
            assert mine.roles == {"who": 2, "first_word": 1}


def test_bos_twice_in_text_or_ids_is_noted(tmp_path: Path) -> None:
    tokenizer = llama_like()
    _, notes = load(tmp_path, pairs("<s><s>"), tokenizer)
    assert "'<s>' [1], '<s>' [1]".replace("[1]", f"[{tokenizer.bos_token_id}]") in only(notes, "8 prompts begin with the same")
    rows = [{"clean": ids_of(tokenizer, row["clean"], True), "answers": 9 + i} for i, row in enumerate(pairs())]
    assert load(tmp_path, rows, tokenizer)[1] == []
    _, notes = load(tmp_path, [{**row, "clean": [tokenizer.bos_token_id, *row["clean"]]} for row in rows], tokenizer)
    only(notes, "4 prompts begin with the same special token twice")


def test_a_chat_marker_that_is_bos(tmp_path: Path) -> None:
    """No word where the text is the whole prompt; where BOS is put before it, it is named and stands once."""
    tokenizer = gpt2_like()
    chat = pairs(f"{START}user\n", f"{END}\n{START}said\n", answers=("cold", "short"))
    task, notes = load(tmp_path, chat, tokenizer, first_token=True)
    assert [one for one in notes if START in one] == []
    again, notes = load(tmp_path, chat, tokenizer, first_token=True, prepend_bos=True)
    assert all_examples(again) == all_examples(task)
    assert any(re.match(rf"\d prompts already begin with '{re.escape(START)}' \[\d+\], which would", one) for one in notes)
    inside = pairs(f"user {START}")
    task, notes = load(tmp_path, inside, tokenizer, prepend_bos=True)
    assert task.train[0].clean.count(tokenizer.bos_token_id) == 2
    only(notes, rf"'{re.escape(START)}' \[\d+\] is put before 5 prompts that hold the BOS token elsewhere")
    assert load(tmp_path, inside, tokenizer)[1] == []


def test_a_prompt_ends_before_eos(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    _, notes = load(tmp_path, pairs(after=END), tokenizer)
    assert re.search(
        r"after ' keys?' \[\d+\], ' is' \[\d+\], '<\|im_end\|>' \[\d+\]", only(notes, "4 answers are read after a")
    )
    rows = [
        {"clean": [tokenizer.eos_token_id, *ids_of(tokenizer, row["clean"])], "answers": 3 + i} for i, row in enumerate(pairs())
    ]
    only(load(tmp_path, rows, tokenizer)[1], "4 prompts begin with a token that ends a text")


def test_what_stands_before_a_text_is_told_or_asked_for() -> None:
    assert special_prefix(gpt2_like(f"{START} $A {END}")) == (gpt2_like().bos_token_id,)
    assert special_prefix(gpt2_like(f"$A {END}")) == ()
    assert special_prefix(llama_like("<s> $A </s>")) == (llama_like().bos_token_id,)
    silent = uncased("[CLS] $A")

    class Changing:
        """A tokenizer that reads the text otherwise where it adds special tokens."""

        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1, 5] if add_special_tokens else [6]}

        def __len__(self) -> int:
            return 0

    assert special_prefix(silent) == (silent.bos_token_id,)
    with pytest.raises(BadSetting, match=r"before a text cannot be told: it reads 'a' as \[6\], and .* as \[1\], \[5\]"):
        special_prefix(Changing())  # pyright: ignore[reportArgumentType] - as much of a tokenizer as is asked for


# --- padding


def test_padding_that_a_tokenizer_adds_by_itself_does_not_arrive(tmp_path: Path) -> None:
    plain, padding = llama_like(), padding_by_itself(llama_like())
    assert len(padding.backend_tokenizer.encode("The key is").ids) == 16, "its own padding and truncation are on"
    assert load(tmp_path, pairs(), padding)[0].train == load(tmp_path, pairs(), plain)[0].train


def test_padding_in_ids_is_refused_or_noted(tmp_path: Path) -> None:
    tokenizer = llama_like()
    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    short, long = [bos, 9, 10], [bos, 9, 11, 12]
    left = [{"clean": [pad, *short], "answers": 5}, {"clean": long, "answers": 6}]
    assert re.match(
        rf"the clean prompt begins with the padding token \('<pad>' \[{pad}\], '<s>'", refused(tmp_path, left, tokenizer)
    )
    right = [{"clean": [*short, pad], "answers": 5}, {"clean": long, "answers": 6}]
    assert "is read at the padding token" in refused(tmp_path, right, tokenizer)
    unread = [{"clean": [*short, pad], "answers": 5, "positions": 2}, {"clean": long, "answers": 6}]
    assert load(tmp_path, unread, tokenizer)[1] == [], "behind the answer nothing reads it"
    bodies = [[7, 8, 9, 10], [7, 9, 10], [8, 9], [9, 7, 8]]
    for side in (1, -1):  # without a tokenizer: runs of one token that is nowhere else
        rows = [{"clean": ([0] * (5 - len(ids)) + ids[::side])[::side], "answers": 3 + i} for i, ids in enumerate(bodies)]
        _, notes = load(tmp_path, rows, None)
        only(notes, rf"the prompts {'begin' if side == 1 else 'end'} with up to 3 times the token \[0\] and have one length")
    same = [{"clean": [0, 0, *ids[:2]], "answers": 3 + i} for i, ids in enumerate(bodies)]
    assert load(tmp_path, same, None)[1] == [], "a beginning that all prompts share"


# --- spaces


@pytest.mark.parametrize("tokenizer", [gpt2_like(digits=True), llama_like(), llama_like(prepend="first"), sentence_piece()])
def test_a_space_before_digits_belongs_to_the_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """' 8' is a space and a digit: refused, noted where its first token is asked for, and right at the prompt's end."""
    sums = [(a, b) for a in range(1, 5) for b in range(1, 3)]
    rows = [{"clean": f"{a} + {b} =", "corrupted": f"{a} + {9 - b} =", "answers": f" {a + b}"} for a, b in sums]
    message = refused(tmp_path, rows, tokenizer)
    assert re.match(r"the answer ' 2' is 2 tokens \(' ' \[\d+\], '2' \[\d+\]\): the first is only a space, so end", message)
    task, notes = load(tmp_path, rows, tokenizer, first_token=True)
    assert len({one.answers for one in all_examples(task)}) == 1
    assert re.search(r"is only a space, with which 5 different answers begin \(the first is ' ' \[\d+\], '\d' ", notes[0])
    ended = [{"clean": f"{row['clean']} ", "corrupted": f"{row['corrupted']} ", "answers": row["answers"][1:]} for row in rows]
    task, notes = load(tmp_path, ended, tokenizer)
    assert notes == []
    for one in all_examples(task):
        a, b = (int(word) for word in one.text.split()[::2][:2])
        assert [*one.clean[-1:], *one.answers[0]] == ids_of(tokenizer, f"{one.text}{a + b}")[-2:]


def test_two_spaces_and_a_lost_one(tmp_path: Path) -> None:
    """Between prompt and answer stands one space: two are noted, none is noted or refused with the way out."""
    tokenizer = gpt2_like()
    _, notes = load(tmp_path, pairs(after=" "), tokenizer)
    pattern = r"4 prompts end in a space and their answers begin with another, the first one as ' is' \[\d+\], ' ' \[\d+\], ' "
    only(notes, pattern)
    message = refused(tmp_path, pairs(after=" ", answers=("cold", "short")), tokenizer)
    assert re.match(r"the answer 'cold' merges .* \(from token 3 on ' ' \[\d+\] against ' cold' \[\d+\]\): end the", message)
    message = refused(tmp_path, pairs(answers=("cold", "short")), tokenizer)
    assert re.search(r"is 4 tokens \('c' .*'d' \[\d+\]\): begin it with a space, since ' cold' \[\d+\] is one", message)
    for after in ("", ":", " ="):
        _, notes = load(tmp_path, pairs(after=after, answers=("Box", "The")), tokenizer)
        only(notes, rf"8 answers follow their prompt without a space, the first one as '.*is{after}(Box|The)'")
    for after in ("\n", '"', "("):
        assert load(tmp_path, pairs(after=after, answers=("Box", "The")), tokenizer)[1] == [], "no space is missing"


@pytest.mark.parametrize("after", ['"', "(", "\n"])
def test_an_answer_after_a_sign_gets_no_space_of_its_own(tmp_path: Path, after: str) -> None:
    """A tokenizer that puts a space before every text reads 'Box' and ' Box' alike alone, but not after a bracket."""
    tokenizer = llama_like()
    assert ids_of(tokenizer, "Box") == ids_of(tokenizer, " Box") != [tokenizer.convert_tokens_to_ids("Box")]
    task, notes = load(tmp_path, pairs(after=after, answers=("Box", "cold")), tokenizer)
    assert notes == []
    assert {str(tokenizer.convert_ids_to_tokens(one.answers[0][0])) for one in all_examples(task)} == {"Box", "cold"}
    joined = load(tmp_path, pairs(answers=("Box", "cold")), tokenizer)[0]
    assert all_examples(joined) == all_examples(load(tmp_path, pairs(answers=(" Box", " cold")), tokenizer)[0]), (
        "word after word"
    )
    for answers in (("Box", "cold"), (" Box", " cold")):  # no trace of spaces: either way
        task = load(tmp_path, pairs(after=after.strip(), answers=answers, n=2), _uncased_with_quotes())[0]
        assert {tuple(one.answers[0]) for one in all_examples(task)} == {(_uncased_id("box"),), (_uncased_id("cold"),)}


def _uncased_with_quotes() -> PreTrainedTokenizerFast:
    tokenizer = uncased()
    tokenizer.add_tokens(['"'])
    return tokenizer


def _uncased_id(word: str) -> int:
    return int(uncased().convert_tokens_to_ids(word))  # pyright: ignore[reportArgumentType] - a word gives a number


def test_answers_in_ids_are_held_against_the_tokenizer(tmp_path: Path) -> None:
    """Answers encoded alone, with BOS in front, prompts without the BOS that the tokenizer adds, an unknown word."""
    tokenizer = llama_like(prepend="never")
    rows = pairs(before="the", answers=(" cold", " short"))

    def as_ids(special: bool, answer: Any) -> Rows:
        return [{"clean": ids_of(tokenizer, row["clean"], special), "answers": answer(row, i)} for i, row in enumerate(rows)]

    good = as_ids(True, lambda row, i: ids_of(tokenizer, row["answers"])[0])
    assert load(tmp_path, good, tokenizer)[1] == []
    no_bos = as_ids(False, lambda row, i: ids_of(tokenizer, row["answers"])[0])
    assert "the first begins with 't' [" in only(
        load(tmp_path, no_bos, tokenizer)[1], "4 of 4 prompts of ids do not begin with '<s>'"
    )
    assert load(tmp_path, no_bos, tokenizer, prepend_bos=False)[1][0].startswith("prepend_bos=false does nothing to")
    alone = as_ids(True, lambda row, i: ids_of(tokenizer, ("cold", "Box")[i % 2])[0])
    assert re.search(
        r"' is' \[\d+\], '(cold|Box)' \[\d+\]", only(load(tmp_path, alone, tokenizer)[1], "4 answers given as ids follow")
    )
    with_bos = as_ids(True, lambda row, i: ids_of(tokenizer, row["answers"], True)[0])
    assert load(tmp_path, with_bos, tokenizer)[1][0].startswith("4 answers are the special token '<s>'")
    unknown = [{**row, "clean": [*row["clean"][:-2], tokenizer.unk_token_id, row["clean"][-1]]} for row in good[:1]]
    assert load(tmp_path, [*unknown, *good[1:]], tokenizer)[1][0].startswith("1 of 4 examples hold '<unk>'")
