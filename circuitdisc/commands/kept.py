"""A command's folder while it works: a journal of finished units, so that the same command goes on after a kill."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadRun, CircuitdiscError

if TYPE_CHECKING:
    from circuitdisc.runs import Journal

RESULT, ARRAYS, PAGE, JOURNAL = "result.json", "arrays.npz", "report.html", "journal.jsonl"


@contextmanager
def work_in(folder: Path) -> Iterator["Journal"]:
    """The journal in the folder of a new call, or of one that was killed.

    A call that fails before it has found anything leaves nothing.

    Raises:
        BadRun: the folder holds something else, or a finished result.
    """
    from circuitdisc.runs import Journal, check_free

    killed = (folder / JOURNAL).is_file() and not (folder / RESULT).exists() and not (folder / "config.json").exists()
    if not killed:
        if (folder / RESULT).exists():
            raise BadRun(f"the folder {folder} already exists and holds a result: choose another with out=, or remove it")
        check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRun(f"cannot make the folder {folder}: {error.strerror}") from error
    journal = Journal(folder / JOURNAL)
    try:
        yield journal
    except CircuitdiscError:
        journal.close()
        if not killed and len(journal.decisions) < 2:  # no more than the settings
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        journal.close()


def finished(
    folder: Path,
    result: Any,
    config: Mapping[str, Any],
    *,
    heading: str,
    subject: str,
    format: str,
    notes: tuple[str, ...] = (),
) -> str:
    """Write the result's files, the page first and result.json last; returns what the command prints.

    Args:
        result: with `to_dict`, `arrays`, and a description.
        config: as `parse` gives it, with the `command`.
        heading, subject: of the page.
        format: of result.json.
        notes: what a reader must know of the task, in sentences.
    """
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.report.dcm import describe
    from circuitdisc.report.heads import description_text, write_description
    from circuitdisc.runs import versions

    record = {**{key: value for key, value in config.items() if key != "out"}, "versions": versions()}
    description = describe(result).noted(notes)
    write_description(folder / PAGE, description, heading=heading, subject=subject, settings=record)
    write_arrays(folder / ARRAYS, result.arrays())
    write_json(folder / RESULT, {"format": format, "version": 1, **record, "result": result.to_dict()})
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"
