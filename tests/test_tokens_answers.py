"""Letters that a tokenizer does not keep, answers that do not tell examples apart, and where notes of a task go."""

import re
import warnings
from pathlib import Path

import pytest
from spaces import all_examples, gpt2_like, ids_of, llama_like, load, only, pairs, refused, uncased
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from whole_words import byte_level, model_with, sentence_piece

from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.tasks import TASKS, TextExample, encode_examples, load_task

# --- letters


def test_a_tokenizer_that_lowers_and_strips(tmp_path: Path) -> None:
    """What it reads alike is told where it matters: corrupted prompts, answers, repeated prompts."""
    tokenizer = uncased()
    first = {"clean": "The key is ", "corrupted": "the KEY is", "answers": "may", "wrong": "cold"}
    message = refused(tmp_path, [first, *pairs()], tokenizer)
    assert re.match(
        r"the corrupted prompt is the same as the clean one to this tokenizer, .* as '\[CLS\]' \[\d+\], 'the' ", message
    )
    first = {"clean": "The key is", "corrupted": "The keys is", "answers": "May", "wrong": "may"}
    message = refused(tmp_path, [first, *pairs()], tokenizer)
    assert re.match(r"the answer 'May' and the wrong answer 'may' are scored by the same token, 'may' \[\d+\]", message)
    again = [{**row, "clean": row["clean"].upper()} for row in pairs()[:1]]
    _, notes = load(tmp_path, [*pairs(), *again], tokenizer)
    only(
        notes, "1 of 5 examples repeat a clean prompt and are dropped; the tokenizer reads 'THE KEY IS' and 'The key is' alike"
    )


def test_unknown_letters_and_parts_of_characters(tmp_path: Path) -> None:
    rows = pairs(answers=(" é", " short"))
    for tokenizer in (llama_like(), uncased()):
        plain = refused(tmp_path, [{**row, "clean": f"{row['clean']} ж"} for row in pairs()], tokenizer)
        assert re.match(r"the tokenizer does not know '.?ж' in the clean prompt", plain)
    assert re.match(r"the tokenizer does not know '.*é' in the answer ' é'", refused(tmp_path, rows, llama_like()))
    for tokenizer in (_joining_spaces(), llama_like(prepend="never", bytes_too=True)):
        joins = tokenizer is not llama_like(prepend="never", bytes_too=True)
        lines = [
            {"clean": row["clean"] + " " * (not joins), "answers": f"{' ' * joins}{'éж'[i % 2]}"}
            for i, row in enumerate(pairs())
        ]
        task, notes = load(tmp_path, lines, tokenizer, first_token=True)
        only(notes, r"4 answers are scored by a part of a character, the first of '.*[éж]' by '(ĠÃ|ĠÐ|<0xC3>|<0xD0>)' \[\d+\]")
        assert all(len(one.whole) == 2 for one in all_examples(task))


@pytest.fixture
def dropping() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer without unknown token: what it has no letter for is gone."""
    backend = Tokenizer(BPE({letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}, []))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_letters_that_are_dropped_are_named(tmp_path: Path, dropping: PreTrainedTokenizerFast) -> None:
    rows = [{"clean": f"ab Z{letter} c", "answers": answer} for letter, answer in zip("defg", "wxyz", strict=True)]
    _, notes = load(tmp_path, rows, dropping, n=2)
    assert notes[0].startswith("the tokenizer drops characters of 4 prompts")
    assert "the first, 'ab Zd c', is read as 'a' [0], 'b' [1], ' ' [26], 'd' [3]" in notes[0]


def _joining_spaces() -> PreTrainedTokenizerFast:
    """Bytes alone, but that a space joins the first byte of two letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({token: i for i, token in enumerate([*alphabet, "ĠÃ", "ĠÐ"])}, [("Ġ", "Ã"), ("Ġ", "Ð")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend)


# --- answers and prompts that do not vary


def test_answers_that_are_the_same_all_over_a_file_are_noted(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    assert load(tmp_path, pairs(), tokenizer)[1] == []
    for name, other, what in (("answers", " hot", "right"), ("wrong", " tall", "wrong")):
        _, notes = load(tmp_path, [{**row, name: other} for row in pairs()], tokenizer)
        assert f"{other!r} [" in only(notes, f"4 of 4 examples have the same {what} answer")
    _, notes = load(tmp_path, [{**row, "answers": " hot", "wrong": " tall"} for row in pairs()], tokenizer)
    assert len(notes) == 2
    assert load(tmp_path, [{**row, "answers": " hot"} for row in pairs(n=3)], tokenizer)[1] == [], "three may agree by chance"


def test_answers_that_share_their_first_token_are_noted(tmp_path: Path) -> None:
    tokenizer = llama_like(prepend="never")
    endings = (" cold", " short", " tall", " hot")
    rows = [{"clean": row["clean"], "answers": f" {('key', 'the')[i % 2]}{endings[i]}"} for i, row in enumerate(pairs())]
    _, notes = load(tmp_path, rows, tokenizer, first_token=True)
    pattern = (
        r"4 different answers are scored by 2 tokens, the first of each alone: \(' (key|the)' \[\d+\], ' \w+' \[\d+\]\) and"
    )
    only(notes, pattern)
    apart = [{**row, "answers": f"{end} cold"} for row, end in zip(rows, endings, strict=True)]
    assert load(tmp_path, apart, tokenizer, first_token=True)[1] == []


def test_a_change_after_the_answer_is_noted(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    rows = [{**row, "positions": 0} for row in pairs()]
    only(
        load(tmp_path, rows, tokenizer)[1], r"4 corrupted prompts differ from the clean ones only after the answer is read: the"
    )
    both = [{**row, "positions": [0, -1], "answers": [row["answers"]] * 2, "wrong": [row["wrong"]] * 2} for row in pairs()]
    assert load(tmp_path, both, tokenizer)[1] == [], "the last position sees it"


def test_a_cut_prompt_whose_tokens_change_is_refused(tmp_path: Path) -> None:
    """A letter of two tokens, read after the first of them: no text ends there."""
    tokenizer = gpt2_like()
    tokens = ids_of(tokenizer, "The Kж is")
    row = {"clean": "The Kж is", "answers": " cold", "positions": tokens.index(ids_of(tokenizer, "ж")[0])}
    assert re.match(r"the prompt up to position 3 has other tokens by itself", refused(tmp_path, [row], tokenizer))


def test_prompts_of_two_lengths_show_where_they_part(tmp_path: Path) -> None:
    rows = [{**row, "corrupted": "The key to the Box is"} for row in pairs()]
    message = refused(tmp_path, rows, llama_like())
    assert re.match(
        r"the clean prompt has 4 tokens and the corrupted one 7 \(from token 3 on ' is' \[\d+\] against ' to' ", message
    )


# --- one line without wrong answers, and where notes go


def test_one_line_without_wrong_answers_is_named(tmp_path: Path) -> None:
    rows = pairs()
    del rows[2]["wrong"]
    task, notes = load(tmp_path, rows, gpt2_like())
    assert task.metric == "log_prob"
    path = tmp_path / "pairs.jsonl"
    assert only(notes, re.escape(f"{path}:3 has no wrong answer, although others do")).count("log_prob, not logit_diff") == 1
    split = [{**row, "split": "heldout" if i > 1 else "train"} for i, row in enumerate([*pairs(), *rows[2:3]])]
    split[4] = {**split[4], "clean": "The to is"}
    task, notes = load(tmp_path, split, gpt2_like(), n_heldout=2)
    assert (task.metric, notes) == ("logit_diff", []), "a line that is not used changes nothing"
    for row in rows:
        row.pop("wrong", None)
    assert load(tmp_path, rows, gpt2_like())[1] == [], "none has any, which is a choice"


def test_without_a_task_being_loaded_a_note_is_a_warning() -> None:
    with pytest.warns(CircuitdiscWarning, match="1 prompts already begin with '<s>'"):
        encode_examples([TextExample("<s>The key is", None, (" cold",))], llama_like())


@pytest.mark.parametrize("name", [name for name in TASKS if name != "file"])
@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["byte-level", "space marks"])
def test_the_listed_tasks_raise_no_false_alarm(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = load_task(name, model_with(tokenizer), n=60, n_heldout=20, seed=1)  # with seed 0 a random token is a space
    assert [sentence for sentence in task.notes if "left out" not in sentence] == []
