"""A task from a file: every field, CSV like JSONL, ids like text, and a sentence with file and line for every slip."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bare_model, word_model, word_tokenizer

from circuitdisc.errors import BadFile, BadTask, CircuitdiscWarning, UnknownName
from circuitdisc.tasks import Task, load_task
from circuitdisc.tasks.check import raise_problems
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.roles import position_of
from circuitdisc.tasks.rows import CSV_COLUMNS, read_rows

DOCS = Path(__file__).parent.parent / "docs" / "own-task.md"


def pair(index: int, **others: Any) -> dict[str, Any]:
    a, b, c, d = NOUNS[4 * index : 4 * index + 4]
    return {
        "clean": f"If all {a} are {b} and {b} are {c}, then all {a} are",
        "corrupted": f"If all {a} are {b} and {d} are {c}, then all {a} are",
        "answers": c,
        "wrong": b,
        **others,
    }


def write_jsonl(folder: Path, rows: Sequence[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(folder: Path, rows: Sequence[dict[str, Any]], name: str = "pairs.csv") -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def content(task: Task) -> tuple[object, ...]:
    return task.train, task.heldout, task.metric


def complaint(path: Path, model=None, error: type[Exception] = BadFile, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        load_task(path, model or word_model(), **settings)
    return str(caught.value)


# --- what a good file gives


def test_a_file_is_split_in_halves_that_the_seed_deals(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [pair(i) for i in range(40)])
    task = load_task(path, word_model(), seed=1)
    assert (len(task.train), len(task.heldout), task.metric, task.name) == (20, 20, "logit_diff", str(path))
    assert not {one.clean for one in task.train} & {one.clean for one in task.heldout}
    assert content(load_task("file", word_model(), path=str(path), seed=1)) == content(task)
    assert content(load_task(path, word_model(), seed=2)) != content(task)
    assert len(load_task(path, word_model(), n=5).heldout) == 5
    smaller = load_task(path, word_model(), n=30, n_heldout=3)
    assert (len(smaller.train), len(smaller.heldout)) == (30, 3)
    assert "31 for training (n) and 31 held out" in complaint(path, error=BadTask, n=31)


def test_the_file_says_the_split(tmp_path: Path) -> None:
    rows = [pair(i, split="train" if i < 7 else "heldout", group=f"g{i % 2}") for i in range(10)]
    task = load_task(write_jsonl(tmp_path, rows), word_model())
    assert [one.text for one in task.train] == [row["clean"] for row in rows[:7]]
    assert [one.text for one in task.heldout] == [row["clean"] for row in rows[7:]]
    assert [one.group for one in task.heldout] == ["g1", "g0", "g1"]
    assert len(load_task(write_jsonl(tmp_path, rows), word_model(), n=2, n_heldout=3).train) == 2


def test_a_named_split_whose_first_lines_are_of_few_groups_says_so(tmp_path: Path) -> None:
    rows = [pair(i, split="train" if i < 8 else "heldout", group=f"g{i // 2 % 4}") for i in range(10)]
    with pytest.warns(
        CircuitdiscWarning, match="the first 4 examples with split 'train' are of 2 of its 4 groups: mix the lines"
    ):
        task = load_task(write_jsonl(tmp_path, rows), word_model(), n=4, n_heldout=2)
    assert {one.group for one in task.train} == {"g0", "g1"}
    load_task(write_jsonl(tmp_path, rows[::2] + rows[1::2]), word_model(), n=4, n_heldout=2)  # a warning would be an error here


def test_csv_equals_jsonl(tmp_path: Path) -> None:
    extra = {"positions": [-1], "group": "g", "split": "train"}
    rows = [pair(i, **extra | ({"split": "heldout"} if i > 2 else {})) for i in range(6)]
    rows[0]["answers"] = ["pebble", " gravel"]
    cells = [{**row, "positions": "-1"} for row in rows]
    cells[0]["answers"] = "pebble| gravel"
    one, two = (load_task(path, word_model()) for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, cells)))
    assert content(one) == content(two)
    assert len(one.train[0].answers[0]) == 2


def test_ids_equal_text(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    rows = [pair(i) for i in range(6)]
    ids = [{key: tokenizer(value)["input_ids"] for key, value in row.items()} for row in rows]
    cells = [{f"{key}_ids": " ".join(map(str, value)) for key, value in row.items()} for row in ids]
    text = load_task(write_jsonl(tmp_path, rows, "text.jsonl"), word_model())
    for path in (write_jsonl(tmp_path, ids), write_csv(tmp_path, cells)):
        task = load_task(path, word_model())
        for mine, its in zip((*task.train, *task.heldout), (*text.train, *text.heldout), strict=True):
            assert (mine.clean, mine.corrupted, mine.answers) == (its.clean, its.corrupted, its.answers)
            assert (mine.positions, mine.wrong) == (its.positions, its.wrong)


def test_several_positions_as_text_and_as_ids(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    rows = [
        {"clean": f"all {NOUNS[i]} are goat", "positions": [0, -1], "answers": ["otter", ["sheep", "horse"]]} for i in range(4)
    ]
    got = load_task(write_jsonl(tmp_path, rows), word_model()).train[0]
    otter, sheep, horse = (tokenizer.convert_tokens_to_ids(word) for word in ("otter", "sheep", "horse"))
    assert (got.positions, got.answers, got.wrong) == ((0, 3), ((otter,), (sheep, horse)), ((), ()))
    cells = [{"clean": row["clean"], "positions": "0 -1", "answers": "otter||sheep|horse"} for row in rows]
    assert load_task(write_csv(tmp_path, cells), word_model()).train[0] == got
    bare = [{"clean": [1, 2, i], "positions": [1, 2], "answers": [[3], [4, 5]], "wrong": [6, []]} for i in range(4)]
    one = load_task(write_jsonl(tmp_path, bare), bare_model()).train[0]
    assert (one.positions, one.answers, one.wrong) == ((1, 2), ((3,), (4, 5)), ((6,), ()))
    cells = [{"clean_ids": f"1 2 {i}", "positions": "1 2", "answers_ids": "3||4|5", "wrong_ids": "6||"} for i in range(4)]
    assert load_task(write_csv(tmp_path, cells), bare_model()).train[0] == one


def test_roles_are_words_or_indices_in_both_formats(tmp_path: Path) -> None:
    """By words and by index, from the end too, with a BOS token before the prompt or none."""
    rows = [pair(i) for i in range(4)]
    for i, row in enumerate(rows):
        row["roles"] = {"b1": f"all {NOUNS[4 * i]} are {NOUNS[4 * i + 1]}", "c": NOUNS[4 * i + 2], "then": "then", "a2": -2}
    cells = [{**row, "roles": json.dumps(row["roles"])} for row in rows]
    for add_bos in (False, True):
        first, second = (
            load_task(path, word_model(add_bos)) for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, cells))
        )
        assert content(first) == content(second)
        for one, other in zip((*first.train, *first.heldout), (*second.train, *second.heldout), strict=True):
            assert one.roles == other.roles
            a, b, c = (NOUNS[4 * (NOUNS.index(one.text.split()[2]) // 4) + i] for i in range(3))
            said = {role: word_tokenizer().convert_ids_to_tokens(one.clean[index]) for role, index in one.roles.items()}
            assert said == {"b1": b, "c": c, "then": "then", "a2": a}
            assert position_of(one, "b1+1") == one.roles["b1"] + 1
            assert one.roles["a2"] == len(one) - 2
    ids = [{"clean": [1, 2, i], "answers": 3, "roles": {"second": 1, "end": -1}} for i in range(4)]
    for path in (
        write_jsonl(tmp_path, ids),
        write_csv(
            tmp_path, [{"clean_ids": f"1 2 {i}", "answers_ids": 3, "roles": '{"second": 1, "end": -1}'} for i in range(4)]
        ),
    ):
        assert {tuple(one.roles.items()) for one in load_task(path, bare_model()).train} == {(("second", 1), ("end", 2))}


def test_a_row_of_several_positions_keeps_its_roles(tmp_path: Path) -> None:
    row = {"clean": "all otter are goat", "positions": [0, -1], "answers": ["otter", "sheep"]}
    rows = [{**row, "clean": f"all {noun} are goat", "roles": {"who": noun, "last_one": -1}} for noun in NOUNS[:4]]
    for one in load_task(write_jsonl(tmp_path, rows), word_model()).train:
        assert one.roles == {"who": 1, "last_one": 3}
        assert one.positions == (0, 3)


def test_without_wrong_answers_the_metric_is_log_prob(tmp_path: Path) -> None:
    rows = [{"clean": [1, i], "answers": 3} for i in range(4)]
    task = load_task(write_jsonl(tmp_path, rows), bare_model())
    assert task.metric == "log_prob"
    assert task.train[0].corrupted is None


def test_blank_lines_a_byte_order_mark_and_spreadsheet_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"\xef\xbb\xbfclean,answers\r\n\r\nall otter are,goat\r\n\r\nall goat are,otter\r\n")
    assert [row.where for row in read_rows(path)] == [f"{path}:3", f"{path}:5"]


def test_a_line_number_counts_lines_inside_quotes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('clean,answers\n"all\notter are",goat\nall elf are,goat\n', encoding="utf-8")
    assert complaint(path, error=BadTask).startswith(f"{path}:4: the tokenizer does not know 'elf'")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4))
def test_any_text_survives_both_formats(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    texts = [(one.replace("\r", " "), two.replace("\r", " ").replace("|", "-")) for one, two in texts]
    rows = [{"clean": f"x{one}", "answers": f"y{two}"} for one, two in texts]
    jsonl, cells = read_rows(write_jsonl(folder, rows)), read_rows(write_csv(folder, rows))
    for one, two, row in zip(jsonl, cells, rows, strict=True):
        assert one.clean == two.clean == row["clean"]
        assert one.answers == two.answers == ((row["answers"],),)


# --- what a bad file gets

GOOD = '{"clean": "all otter are", "answers": "goat"}\n'


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"clean": "all otter are", "ans',
            r"not JSON \(Unterminated string .*\): write one object a line; was the line cut short?",
        ),
        ('["all otter are", "goat"]', r'the line is not an object: write {"clean"'),
        ('{"clean": "a"}', r"the field 'answers' is missing: every line needs 'clean' and 'answers'"),
        ('{"answers": "a"}', r"the field 'clean' is missing"),
        ('{"clean": "a", "answer": "b"}', r"unknown field 'answer'. Did you mean answers?"),
        ('{"clean": "a", "answers": "b", "corupted": "c"}', r"unknown field 'corupted'. Did you mean corrupted?"),
        ('{"clean": "", "answers": "b"}', r"'clean' is \"\": give a text, or a list of token ids, that is not empty"),
        ('{"clean": [1, "a"], "answers": 2}', r"'clean' is \[1, \"a\"\]: give a text, or a list of token ids"),
        ('{"clean": [1, true], "answers": 2}', r"'clean' is \[1, true\]"),
        ('{"clean": "\\ud83d", "answers": "b"}', r"'clean' is .*: give a text"),
        ('{"clean": "a", "corrupted": [1], "answers": "b"}', r"'clean' and 'corrupted' mix text and token ids"),
        ('{"clean": "a", "answers": 5}', r"'answers' holds 5: give text, as the prompt is"),
        ('{"clean": [1], "answers": "b"}', r"'answers' holds \"b\": give token ids, as the prompt is"),
        ('{"clean": [1], "answers": 2, "wrong": "b"}', r"'wrong' holds \"b\": give token ids, as the prompt is"),
        ('{"clean": "a", "answers": []}', r"'answers' is empty: give at least one right answer for each position"),
        (
            '{"clean": "a", "answers": "b", "positions": "last"}',
            r"'positions' is \"last\": give whole numbers, -1 being the last",
        ),
        ('{"clean": "a", "answers": "b", "positions": [0.5]}', r"'positions' is \[0.5\]: give whole numbers"),
        (
            '{"clean": "a b", "answers": "b", "positions": [0, 1]}',
            r"'answers' has 1 entries for 2 positions: give one for each",
        ),
        ('{"clean": "a", "answers": "b", "split": "test"}', r"unknown split 'test'"),
        ('{"clean": "a", "answers": "b", "split": "trian"}', r"unknown split 'trian'. Did you mean train?"),
        ('{"clean": "a", "answers": "b", "roles": ["x"]}', r"'roles' is \[\"x\"\]: give an object of names and places"),
        ('{"clean": "a", "answers": "b", "roles": {"s 2": 0}}', r"the role \"s 2\" is not a name: use letters, digits and _"),
        (
            '{"clean": "a", "answers": "b", "roles": {"s2": 0.5}}',
            r"the role 's2' is 0.5: give a token's index, or words of the",
        ),
        ('{"clean": "a", "answers": "b", "roles": {"s2": true}}', r"the role 's2' is true: give a token's index, or words"),
        ('{"clean": "a", "answers": "b", "roles": {"s2": " "}}', r"the role 's2' is \" \": give a token's index, or words"),
        (
            '{"clean": "the keys", "answers": "b", "roles": {"s2": "key"}}',
            r"the role 's2' is \"key\", which does not occur in the clean prompt: give words that occur once, or a token's",
        ),
        ('{"clean": "a b a", "answers": "b", "roles": {"s2": "a"}}', r"the role 's2' is \"a\", which occurs 2 times in the"),
        ('{"clean": [1, 2], "answers": 2, "roles": {"s2": "a"}}', r"the role 's2' is \"a\": give a token's index$"),
        ("[" * 100_000, r"not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(GOOD + "\n" + line + "\n", encoding="utf-8")
    assert re.match(rf"{re.escape(str(path))}:3: {sentence}", complaint(path))


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("clean,answer\na,b\n", 1, r"unknown column 'answer'. Did you mean answers"),
        ("clean,clean_ids,answers\na,1,b\n", 1, r"the header names 'clean' twice: keep one column"),
        ("clean,answers\na,b,c\n", 2, r"the row has 3 cells, but the header has 2: quote cells with commas"),
        ("clean,answers\na,\n", 2, r"the field 'answers' is missing"),
        (
            "clean_ids,answers_ids\n1 2,3\n1 x,3\n",
            3,
            r"'x' in column 'clean_ids' is not a whole number: write numbers separated",
        ),
        (
            "clean,answers,roles\na,b,subject=0\n",
            2,
            r"column 'roles' is not JSON \(Expecting value\): write an object, in CSV as",
        ),
        ("clean,answers,positions\na,b,end\n", 2, r"'end' in column 'positions' is not a whole number"),
        ('clean,answers\na,b\n"a,b\n', 3, r"not CSV \(.*\): was the file cut short inside a quoted cell?"),
        ("clean_ids,answers\n1 2,a\n", 2, r"'answers' holds \"a\": give token ids, as the prompt is"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    assert re.match(rf"{re.escape(str(path))}:{line}: {sentence}", complaint(path))


def test_lines_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    ids = '{"clean": [1], "answers": 2}\n'
    with_corrupted = '{"clean": "all goat are", "answers": "otter", "corrupted": "all sheep are"}\n'
    with_split = '{"clean": "all goat are", "answers": "otter", "split": "train"}\n'
    for second, sentence in (
        (ids, rf"{path}:1 holds text and {path}:2 token ids: use one of the two in the whole file"),
        (with_corrupted, rf"{path}:1 and {path}:2 differ in having a 'corrupted' prompt: give one in all lines or in none"),
        (with_split, rf"{path}:1 and {path}:2 differ in having a 'split': give one in all lines or in none"),
    ):
        path.write_text(GOOD + second, encoding="utf-8")
        assert complaint(path) == sentence
    path.write_text(ids + GOOD, encoding="utf-8")
    assert complaint(path).startswith(f"{path}:2 holds text and {path}:1 token ids")


def test_missing_empty_and_other_files(tmp_path: Path) -> None:
    missing, empty, other = tmp_path / "none.jsonl", tmp_path / "empty.csv", tmp_path / "pairs.txt"
    assert complaint(missing) == f"cannot read {missing}: No such file or directory"
    empty.write_text("\n", encoding="utf-8")
    assert complaint(empty).startswith(f"{empty} holds no examples: write one a line")
    empty.write_text("clean,answers\n", encoding="utf-8")
    assert complaint(empty).startswith(f"{empty} holds no examples")
    other.write_text(GOOD, encoding="utf-8")
    assert complaint(other) == f"{other} is not a task file: give one that ends in .jsonl or .csv"
    other = tmp_path / "binary.jsonl"
    other.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in complaint(other)
    with pytest.raises(UnknownName, match=r"unknown task 'none.txt'.*Your own prompt pairs go into a .jsonl or .csv file"):
        load_task("none.txt", word_model())


def test_only_the_first_few_bad_lines_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("pairs.jsonl")
    path.write_text(GOOD + "oops\n" * 5, encoding="utf-8")
    *lines, rest = complaint(path).split("\n")
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{number}" for number in (2, 3, 4)][: len(lines)]
    assert lines  # as many of the first three as a message has room for
    assert rest == f"... and {5 - len(lines)} more"


def test_a_message_about_many_lines_stays_short() -> None:
    """As many problems as fit, and the first one, shortened where it alone is too long."""
    for length, shown in ((100, 3), (200, 2)):
        with pytest.raises(BadFile) as caught:
            raise_problems([f"{number}{'x' * (length - 1)}" for number in range(9)], BadFile)
        lines = str(caught.value).split("\n")
        assert [len(line) for line in lines[:-1]] == [length] * shown
        assert lines[-1] == f"... and {9 - shown} more"
    with pytest.raises(BadFile) as caught:
        raise_problems(["x" * 600, "y"], BadFile)
    assert "xxx" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"clean": [1, 50], "answers": 2}, r"token id 50 is not in the input vocabulary of model 'bare': use 0 to 49"),
        ({"clean": [1, -1], "answers": 2}, r"token id -1 is not in the input vocabulary"),
        ({"clean": [1], "answers": 99}, r"token id 99 is not in the output vocabulary"),
        (
            {"clean": [1], "answers": [2, 3], "wrong": 3},
            r"token \[3\] is both a right and a wrong answer: take it from one of the two",
        ),
        ({"clean": [1], "answers": 2, "positions": 1}, r"position 1 is outside the prompt, which has 1 tokens"),
        ({"clean": [1, 2], "answers": 3, "roles": {"s": 2}}, r"role 's': position 2 is outside the prompt, which has 2 tokens"),
        ({"clean": [1] * 65, "answers": 2}, r"the prompt has 65 tokens, but model 'bare' reads at most 64: shorten it"),
        ({"clean": [1] * 9, "corrupted": [1] * 8, "answers": 2}, r"the clean prompt has 9 tokens and the corrupted one 8"),
        ({"clean": [1], "corrupted": [1], "answers": 2}, r"the corrupted prompt is the same as the clean one"),
    ],
)
def test_ids_that_do_not_fit_the_model_are_named(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    first: dict[str, Any] = {"clean": [4, 5], "answers": 6} | ({"corrupted": [4, 6]} if "corrupted" in row else {})
    path = write_jsonl(tmp_path, [first, row])
    assert re.match(rf"{re.escape(str(path))}:2: {sentence}", complaint(path, bare_model(), BadTask))


def test_text_needs_a_tokenizer_and_known_words(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [pair(0), {**pair(1), "answers": "goat sheep"}])
    assert complaint(path, bare_model(), BadTask) == f"{path}:1 holds text, but model 'bare' has no tokenizer: give token ids"
    assert complaint(path, error=BadTask).startswith(f"{path}:2: the answer 'goat sheep' is 2 tokens")
    assert len(load_task(path, word_model(), first_token=True).train) == 1


def test_repeated_prompts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [pair(0), pair(1), pair(0)])
    with pytest.warns(UserWarning, match="1 of 3 examples repeat a clean prompt and are dropped"):
        assert len(load_task(path, word_model()).train) == 1
    path = write_jsonl(tmp_path, [pair(0, split="train"), pair(1, split="train"), pair(0, split="heldout")])
    assert complaint(path, error=BadTask) == f"{path}:1 and {path}:3 hold one prompt in both splits: keep it in one of them"
    path = write_jsonl(tmp_path, [pair(0, split="train"), pair(1, split="train")])
    assert "the file has 0 distinct examples with split 'heldout', but n_heldout is 1" in complaint(path, error=BadTask)


# --- the page


def test_the_pages_examples_load(tmp_path: Path) -> None:
    """Each code block that is a task file, read as the page shows it."""
    blocks = re.findall(r"```(json|csv)\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 4
    for number, (kind, text) in enumerate(blocks):
        path = tmp_path / f"page{number}.{'jsonl' if kind == 'json' else kind}"
        path.write_text(text, encoding="utf-8")
        assert read_rows(path)


def test_the_page_names_every_field() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in CSV_COLUMNS)
