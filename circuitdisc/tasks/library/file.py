"""A task of your own: prompt pairs from a JSONL or CSV file, or from a table in memory (see docs/own-task.md)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Example, Task, TextExample
from circuitdisc.tasks.check import check_examples, raise_problems, resolve_position
from circuitdisc.tasks.encode import encode_examples, special_prefix
from circuitdisc.tasks.examine import examine_ids
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.rows import Row, read_rows, rows_in_memory
from circuitdisc.tasks.split import drop_duplicates, split_examples


def build(
    model: TaskModel,
    *,
    n: int | None,
    n_heldout: int | None,
    seed: int,
    path: Any,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> Task:
    """Make a task of a file's prompt pairs.

    Args:
        model: the model whose tokenizer reads text.
        n: train examples; None: half of the file, or all lines whose split is `train`.
        n_heldout: held-out examples; None: the other half, or all lines whose split is `heldout`.
        seed: seed of the split.
        path: the .jsonl or .csv file; or the rows themselves, a list of dicts or a pandas data frame.
        first_token: score the first token of an answer of several.
        prepend_bos: whether text prompts begin with the BOS token; None leaves it to the tokenizer.

    Returns:
        The task. Its metric is `squared_error` if the lines have targets, `logit_diff` if every example has wrong answers,
        else `log_prob`.

    Raises:
        BadFile: the file is missing or malformed.
        BadTask: its examples cannot be used with this model.
    """
    in_memory = not isinstance(path, str | Path)
    rows = rows_in_memory(path) if in_memory else read_rows(Path(path))
    examples = encode_rows(rows, model, first_token, prepend_bos)
    if rows[0].split is None:
        split = split_examples(examples, n, seed, n_heldout=n_heldout)
        train, heldout = split.train, split.heldout
    else:
        train, heldout = _named_splits(rows, examples, n, n_heldout)
    lacking = {example.clean for example in (*train, *heldout) if not all(example.wrong)}
    if lacking and not rows[0].targets and len(lacking) < len(train) + len(heldout):
        lines = [row.where for row, example in zip(rows, examples, strict=True) if example.clean in lacking]
        note(
            f"{lines[0]} has no wrong answer"
            + (f", and {len(lines) - 1} more lines have none" if len(lines) > 1 else "")
            + ", although others do: the metric of the whole file is log_prob, not logit_diff. Give every line 'wrong' for "
            "logit_diff, or leave it out of the whole file"
        )
    of_tokens = "log_prob" if lacking else "logit_diff"
    name = f"{len(rows):,} rows in memory" if in_memory else str(path)
    return Task(
        name,
        train,
        heldout,
        metric="squared_error" if rows[0].targets else of_tokens,
        settings={"path": name} if in_memory else {},
    )


def encode_rows(rows: Sequence[Row], model: TaskModel, first_token: bool, prepend_bos: bool | None) -> list[Example]:
    """The rows of a file as examples, in their order.

    Raises:
        BadTask: some cannot be used with this model; the first few are named.
    """
    is_text = rows[0].is_text
    examples = _encode_rows(rows, model, first_token, prepend_bos) if is_text else _id_examples(rows, model)
    check_examples(examples, [row.where for row in rows], model)
    if rows[0].targets and model.d_vocab_out > 1 and not all(row.names_output for row in rows):
        raise BadTask(
            f"{rows[0].where} has a 'target', and model '{model.name}' has {model.d_vocab_out} outputs: "
            "say which of them is the number, as its index in 'answers'"
        )
    if not is_text:
        if prepend_bos is not None:
            note(f"prepend_bos={str(prepend_bos).lower()} does nothing to {rows[0].where}: token ids are used as they stand")
        prefix = () if prepend_bos is False else special_prefix(model.tokenizer)
        for sentence in examine_ids(examples, model.tokenizer, prefix):
            note(sentence)
    return examples


def _id_examples(rows: Sequence[Row], model: TaskModel) -> list[Example]:
    examples: list[Example] = []
    problems: list[str] = []
    for row in rows:
        clean = _only_ids(row.clean)
        corrupted = None if row.corrupted is None else _only_ids(row.corrupted)
        text = "" if model.tokenizer is None else str(model.tokenizer.decode(list(clean)))
        try:
            positions = tuple(resolve_position(position, len(clean)) for position in row.positions)
        except BadTask as problem:
            problems.append(f"{row.where}: {problem}")
            continue
        answers = tuple(_only_ids(answer) for answer in row.answers)
        wrong = tuple(_only_ids(answer) for answer in row.wrong)
        examples.append(Example(clean, corrupted, positions, answers, wrong, group=row.group, text=text, targets=row.targets))
    raise_problems(problems, BadTask)
    return _with_indices(rows, examples)


def _encode_rows(rows: Sequence[Row], model: TaskModel, first_token: bool, prepend_bos: bool | None) -> list[Example]:
    """Encode each position of each row as an example of its own, then join those of a row."""
    if model.tokenizer is None:
        raise BadTask(f"{rows[0].where} holds text, but model '{model.name}' has no tokenizer: give token ids")
    texts: list[TextExample] = []
    owners: list[int] = []
    positions: list[int] = []
    for owner, row in enumerate(rows):
        corrupted = None if row.corrupted is None else str(row.corrupted)
        for at, (position, answers, wrong) in enumerate(zip(row.positions, row.answers, row.wrong, strict=True)):
            right, not_right = tuple(map(str, answers)), tuple(map(str, wrong))
            spans = {role: place for role, place in row.roles.items() if isinstance(place, tuple)}
            if row.targets:
                texts.append(TextExample(str(row.clean), corrupted, (), (), row.group, spans, row.targets[at]))
            else:
                texts.append(TextExample(str(row.clean), corrupted, right, not_right, row.group, spans))
            owners.append(owner)
            positions.append(position)
    parts = encode_examples(
        texts,
        need_tokenizer(model, "file"),
        first_token=first_token,
        prepend_bos=prepend_bos,
        positions=positions,
        where=[rows[owner].where for owner in owners],
    )
    joined: dict[int, Example] = {}
    for owner, part in zip(owners, parts, strict=True):
        before = joined.get(owner)
        joined[owner] = part if before is None else _join(before, part)
    for owner, example in joined.items():
        if rows[owner].targets:  # which output each number is read from
            joined[owner] = replace(example, answers=tuple(_only_ids(columns) for columns in rows[owner].answers))
    return _with_indices(rows, joined.values())


def _with_indices(rows: Sequence[Row], examples: Iterable[Example]) -> list[Example]:
    """The examples with the roles that their rows give as a token's index added to those given as words."""
    done: list[Example] = []
    problems: list[str] = []
    for row, example in zip(rows, examples, strict=True):
        roles: dict[str, int] = {}
        for role, place in row.roles.items():
            try:
                roles[role] = example.roles[role] if isinstance(place, tuple) else resolve_position(place, len(example))
            except BadTask as problem:
                problems.append(f"{row.where}: role '{role}': {problem}")
        done.append(replace(example, roles=roles))
    raise_problems(problems, BadTask)
    return done


def _join(first: Example, second: Example) -> Example:
    return replace(
        first,
        positions=first.positions + second.positions,
        answers=first.answers + second.answers,
        wrong=first.wrong + second.wrong,
        whole=first.whole or second.whole,
        targets=first.targets + second.targets,
    )


def _only_ids(values: str | Sequence[str | int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _named_splits(
    rows: Sequence[Row], examples: Sequence[Example], n: int | None, n_heldout: int | None
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The splits that the lines name, in the file's order, cut to the sizes asked for."""
    seen: dict[tuple[int, ...], Row] = {}
    for row, example in zip(rows, examples, strict=True):
        before = seen.setdefault(example.clean, row)
        if before.split != row.split:
            raise BadTask(f"{before.where} and {row.where} hold one prompt in both splits: keep it in one of them")
    splits: list[tuple[Example, ...]] = []
    for name, size, setting in (("train", n, "n"), ("heldout", n_heldout, "n_heldout")):
        mine = drop_duplicates([example for row, example in zip(rows, examples, strict=True) if row.split == name])
        if len(mine) < (size or 1):
            raise BadTask(
                f"the file has {len(mine)} distinct examples with split '{name}', but {setting} is {size or 1}: "
                "add lines, or ask for fewer"
            )
        splits.append(tuple(mine[:size]))
        groups, of_all = ({example.group for example in part} for part in (splits[-1], mine))
        if len(groups) < len(of_all):
            note(
                f"the first {size} examples with split '{name}' are of {len(groups)} of its {len(of_all)} groups: mix the "
                f"lines of the file, or ask for more with {setting}="
            )
    return splits[0], splits[1]
