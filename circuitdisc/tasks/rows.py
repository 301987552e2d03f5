"""The rows of a user's task: a JSONL file, one object a line, a CSV file with a header line, or a table in memory.

All hold the same fields. A prompt is text or a list of token ids; in CSV the ids stand in the columns `clean_ids`,
`corrupted_ids`, `answers_ids` and `wrong_ids`, separated by spaces. In CSV, `|` separates answers and `||` positions, and
`roles` holds a JSON object, as in JSONL.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from circuitdisc.errors import BadFile, UnknownName, shown
from circuitdisc.files import read_text
from circuitdisc.tasks.base import SPLITS
from circuitdisc.tasks.check import raise_problems

FIELDS = ("clean", "corrupted", "answers", "wrong", "target", "positions", "group", "split", "roles")
ID_FIELDS = ("clean", "corrupted", "answers", "wrong")
CSV_COLUMNS = (*FIELDS, *(f"{name}_ids" for name in ID_FIELDS))
MOST_LINES, MOST_CHARACTERS = 1_000_000, 1_000_000  # of a file, and in a line of it
ROLE = re.compile(r"[A-Za-z_]\w*")

Item = str | int
Place = int | tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One line of a task file, before it meets a model.

    Args:
        where: file and line.
        clean: text or token ids.
        corrupted: of the same kind; None if there is none.
        positions: where answers are read; may count from the end.
        answers: for each position the right answers, of the same kind as the prompt.
        wrong: for each position the wrong answers.
        group: what `mean` ablation may average over.
        split: `train` or `heldout`; None if the line does not say.
        roles: named positions: a token's index, which may count from the end, or the characters (first, one past the
            last) of the clean prompt.
        extra: text fields that the reader asked for beside these.
        targets: for each position the number that the model should put out; `answers` then names the output that is read.
            Empty where the answers are tokens.
        names_output: whether the line itself has `answers`; without, a target is read from the first output.
    """

    where: str
    clean: str | tuple[int, ...]
    corrupted: str | tuple[int, ...] | None
    positions: tuple[int, ...]
    answers: tuple[tuple[Item, ...], ...]
    wrong: tuple[tuple[Item, ...], ...]
    group: str = ""
    split: str | None = None
    roles: Mapping[str, Place] = field(default_factory=dict, hash=False)
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    targets: tuple[float, ...] = ()
    names_output: bool = True

    @property
    def is_text(self) -> bool:
        return isinstance(self.clean, str)


def read_rows(path: Path, extra: Sequence[str] = ()) -> list[Row]:
    """Read every line of a task file.

    Args:
        extra: further fields that its lines may have, with text in them.

    Raises:
        BadFile: the file is missing, empty, of another kind, or has malformed lines, of which the first few are named.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise BadFile(f"{path} is not a task file: give one that ends in .jsonl or .csv")
    text = read_text(path).removeprefix("\ufeff")
    if text.count("\n") > MOST_LINES:
        raise BadFile(f"{path} has {text.count(chr(10)):,} lines, more than the {MOST_LINES:,} that a task may have")
    records = _csv_records(path, text) if suffix == ".csv" else _jsonl_records(path, text)
    return _rows(records, str(path), extra)


def rows_in_memory(table: Any, extra: Sequence[str] = ()) -> list[Row]:
    """The rows of a table in memory, whose fields and values are those of a JSONL file.

    Args:
        table: a sequence of mappings, or a pandas data frame, in which an empty cell (None, NaN) is a field left out.
        extra: as in `read_rows`.

    Raises:
        BadFile: it is none, empty, or has malformed rows, of which the first few are named by their numbers from 1.
    """
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        table = table.to_dict("records")
    if isinstance(table, Mapping | str | bytes) or not isinstance(table, Sequence):
        raise BadFile(f"examples in memory are a list of dicts or a data frame, not a {type(table).__name__}")
    records = ((f"row {number}", _plain_record(record)) for number, record in enumerate(table, start=1))
    return _rows(records, "the list", extra)


def _plain_record(record: object) -> dict[str, object] | BadFile:
    if not isinstance(record, Mapping):
        return BadFile(f'it is a {type(record).__name__}: give a dict {{"clean": ..., "answers": ...}}')
    plain = {str(name): _plain_value(value, str(name)) for name, value in record.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plain_value(value: Any, field: str) -> object:
    """A value as JSON has it: numpy's numbers and arrays as Python's, an empty cell of pandas as None."""
    if isinstance(value, Mapping):
        return {str(name): _plain_value(inner, field) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain_value(inner, field) for inner in value]
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and field != "target" and value.is_integer():
        return int(value)  # pandas writes a column of whole numbers with an empty cell as floats
    return value


def _rows(records: Iterable[tuple[str, dict[str, object] | BadFile]], source: str, extra: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    for where, record in records:
        try:
            if isinstance(record, BadFile):
                raise record
            rows.append(_row(where, record, extra))
        except BadFile as problem:
            problems.append(f"{where}: {problem}")
    raise_problems(problems, BadFile)
    if not rows:
        raise BadFile(f"{source} holds no examples: write one a line, with at least 'clean' and 'answers'")
    _check_alike(rows)
    return rows


def _check_alike(rows: Sequence[Row]) -> None:
    """All rows hold text or all ids; all or none have a corrupted prompt; all or none name a split."""
    first = rows[0]
    traits = (
        ("holds text and {0} token ids: use one of the two in the whole file", lambda row: row.is_text),
        ("and {0} differ in having a 'corrupted' prompt: give one in all lines or in none", lambda row: row.corrupted),
        ("and {0} differ in having a 'split': give one in all lines or in none", lambda row: row.split),
        ("and {0} differ in having a 'target': give one in all lines or in none", lambda row: row.targets),
    )
    for sentence, trait in traits:
        for row in rows[1:]:
            if bool(trait(row)) != bool(trait(first)):
                text_first = (first, row) if first.is_text else (row, first)
                raise BadFile(f"{text_first[0].where} {sentence.format(text_first[1].where)}")


def _jsonl_records(path: Path, text: str) -> Iterator[tuple[str, dict[str, object] | BadFile]]:
    """The object of each line, or why it is none. JSON lines end in a line feed alone."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if len(line) > MOST_CHARACTERS:
            yield where, BadFile(f"the line has {len(line):,} characters, more than the {MOST_CHARACTERS:,} that one may have")
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield where, BadFile(f"not JSON ({what}): write one object a line; was the line cut short?")
            continue
        if isinstance(record, dict):
            yield where, {name: value for name, value in record.items() if value is not None}
        else:
            yield where, BadFile('the line is not an object: write {"clean": ..., "answers": ...}')


def _csv_records(path: Path, text: str) -> Iterator[tuple[str, dict[str, object] | BadFile]]:
    """The cells of each row as JSONL would hold them, or why they cannot be read."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _csv_header(where, cells)
            elif len(cells) != len(header):
                problem = f"the row has {len(cells)} cells, but the header has {len(header)}: quote cells with commas"
                yield where, BadFile(problem)
            else:
                yield where, _csv_record(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        yield f"{path}:{line}", BadFile(f"not CSV ({error}): was the file cut short inside a quoted cell?")


def _csv_header(where: str, cells: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name in header:
        if name not in CSV_COLUMNS:
            raise BadFile(f"{where}: {UnknownName('column', name, CSV_COLUMNS)}")
    fields = [name.removesuffix("_ids") for name in header]
    if twice := next((name for name in fields if fields.count(name) > 1), None):
        raise BadFile(f"{where}: the header names '{twice}' twice: keep one column")
    return header


def _csv_record(cells: dict[str, str]) -> dict[str, object] | BadFile:
    record: dict[str, object] = {}
    try:
        for column, cell in cells.items():
            if not cell.strip():
                continue
            name = column.removesuffix("_ids")
            is_ids = name != column
            if name in ("answers", "wrong"):
                positions = [position.split("|") if position.strip() else [] for position in cell.split("||")]
                record[name] = [_ids(column, " ".join(words)) for words in positions] if is_ids else positions
            elif name == "roles":
                record[name] = _json_cell(column, cell)
            elif name == "target":
                record[name] = _numbers(column, cell)
            else:
                record[name] = _ids(column, cell) if is_ids or name == "positions" else cell
    except BadFile as problem:
        return problem
    return record


def _ids(column: str, cell: str) -> list[int]:
    words = cell.split()
    for word in words:
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise BadFile(f"{word!r} in column '{column}' is not a whole number: write numbers separated by spaces")
    return [int(word) for word in words]


def _numbers(column: str, cell: str) -> list[float]:
    try:
        return [float(word) for word in cell.split()]
    except ValueError:
        raise BadFile(f"{cell!r} in column '{column}' is not a number: write numbers separated by spaces") from None


def _json_cell(column: str, cell: str) -> object:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        example = '"{""subject"": 3}"'
        raise BadFile(f"column '{column}' is not JSON ({what}): write an object, in CSV as {example}") from None


def _row(where: str, record: dict[str, object], extra: Sequence[str] = ()) -> Row:
    for name, value in record.items():
        if name not in (*FIELDS, *extra):
            raise BadFile(str(UnknownName("field", name, (*FIELDS, *extra))))
        if name in extra and not (_is_text(value) and value.strip()):
            raise BadFile(f"'{name}' is {_shown(value)}: give a text that is not empty")
    names_output = "answers" in record
    if "target" in record:
        record = {"answers": 0 if "positions" not in record else [0] * len(_positions(record["positions"])), **record}
    for name in ("clean", "answers"):
        if name not in record:
            raise BadFile(f"the field '{name}' is missing: every line needs 'clean' and 'answers' (or a number as 'target')")
    clean = _prompt("clean", record["clean"])
    corrupted = _prompt("corrupted", record["corrupted"]) if "corrupted" in record else None
    if corrupted is not None and isinstance(corrupted, str) != isinstance(clean, str):
        raise BadFile("'clean' and 'corrupted' mix text and token ids: use one of the two in the whole file")
    positions = _positions(record.get("positions", -1))
    targets = _targets(record["target"], len(positions)) if "target" in record else ()
    kind = str if isinstance(clean, str) and not targets else int
    answers = _per_position("answers", record["answers"], len(positions), kind)
    wrong = _per_position("wrong", record.get("wrong", [[] for _ in positions]), len(positions), kind)
    if not all(answers):
        raise BadFile("'answers' is empty: give at least one right answer for each position")
    split = record.get("split")
    if split is not None and split not in SPLITS:
        raise BadFile(str(UnknownName("split", str(split), SPLITS)))
    group, roles = str(record.get("group", "")), _roles(record.get("roles", {}), clean)
    if targets and any(wrong):
        raise BadFile("'wrong' beside 'target': a number has no wrong answers; leave one of the two out")
    more = {name: str(record[name]) for name in extra if name in record}
    return Row(
        where, clean, corrupted, positions, answers, wrong, group, split and str(split), roles, more, targets, names_output
    )


def _targets(value: object, n_positions: int) -> tuple[float, ...]:
    """The right number at each position."""
    values: list[object] = value if isinstance(value, list) else [value]
    numbers = [number for number in values if isinstance(number, int | float) and not isinstance(number, bool)]
    if len(numbers) < len(values) or not all(math.isfinite(number) for number in numbers):
        raise BadFile(f"'target' is {_shown(value)}: give the number that the model should put out")
    if len(numbers) != n_positions:
        raise BadFile(f"'target' has {len(numbers)} numbers for {n_positions} positions: give one for each position")
    return tuple(map(float, numbers))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> TypeGuard[str]:
    """True for text that UTF-8 can hold; half a surrogate pair ("\\ud83d"), which JSON allows, is none."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode("utf-8") == value


def _prompt(name: str, value: object) -> str | tuple[int, ...]:
    if _is_text(value) and value.strip():
        return value
    if isinstance(value, list) and value and all(_is_int(item) for item in value):
        return tuple(value)
    raise BadFile(f"'{name}' is {_shown(value)}: give a text, or a list of token ids, that is not empty")


def _positions(value: object) -> tuple[int, ...]:
    values: list[object] = value if isinstance(value, list) else [value]
    positions = tuple(position for position in values if _is_int(position))
    if not positions or len(positions) < len(values):
        raise BadFile(f"'positions' is {_shown(value)}: give whole numbers, -1 being the last token of the prompt")
    return positions


def _per_position(name: str, value: object, n_positions: int, kind: type[Item]) -> tuple[tuple[Item, ...], ...]:
    """For each position its answers: a single answer, a list of them, or with several positions a list of either."""
    whole: list[object] = value if isinstance(value, list) else [value]
    if n_positions == 1 and not (len(whole) == 1 and isinstance(whole[0], list)):
        whole = [whole]
    if len(whole) != n_positions:
        raise BadFile(f"'{name}' has {len(whole)} entries for {n_positions} positions: give one for each position")
    return tuple(_answers(name, answers, kind) for answers in whole)


def _answers(name: str, value: object, kind: type[Item]) -> tuple[Item, ...]:
    values: list[object] = value if isinstance(value, list) else [value]
    for answer in values:
        if not (_is_int(answer) if kind is int else _is_text(answer)):
            wanted = "token ids, as the prompt is" if kind is int else "text, as the prompt is"
            wanted += "; a number that the model should put out goes into 'target'" if isinstance(answer, float) else ""
            raise BadFile(f"'{name}' holds {_shown(answer)}: give {wanted}")
    return tuple(answer for answer in values if isinstance(answer, str | int))


def _roles(value: object, clean: str | tuple[int, ...]) -> dict[str, Place]:
    """Each role's index, or the characters of the words that it names."""
    if not isinstance(value, dict):
        raise BadFile(f"'roles' is {_shown(value)}: give an object of names and places, as in {{\"subject\": 3}}")
    roles: dict[str, Place] = {}
    for role, place in value.items():
        if not ROLE.fullmatch(role):
            raise BadFile(f"the role {_shown(role)} is not a name: use letters, digits and _, beginning with a letter")
        if _is_int(place):
            roles[role] = place
        elif isinstance(clean, str) and _is_text(place) and place.strip():
            roles[role] = _words(role, place.strip(), clean)
        else:
            wanted = "a token's index, or words of the clean prompt" if isinstance(clean, str) else "a token's index"
            raise BadFile(f"the role '{role}' is {_shown(place)}: give {wanted}")
    return roles


def _words(role: str, words: str, clean: str) -> tuple[int, int]:
    """Where whole words stand in the clean prompt."""
    before = r"(?<!\w)" if re.match(r"\w", words) else ""
    after = r"(?!\w)" if re.search(r"\w$", words) else ""
    places = [match.span() for match in re.finditer(f"{before}{re.escape(words)}{after}", clean)]
    if len(places) != 1:
        times = "does not occur" if not places else f"occurs {len(places)} times"
        raise BadFile(
            f"the role '{role}' is {_shown(words)}, which {times} in the clean prompt: "
            "give words that occur once, or a token's index"
        )
    return places[0]


def _shown(value: object) -> str:
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return shown(value)
    return written if len(written) <= 40 else f"{written[:37]}..."
