"""A command's folder while it works: a journal of finished units, so that the same command goes on after a kill."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadRun

if TYPE_CHECKING:
    from circuitdisc.runs import Journal

RESULT, ARRAYS, PAGE, JOURNAL = "result.json", "arrays.npz", "report.html", "journal.jsonl"


@contextmanager
def new_folder(folder: Path, command: str) -> Iterator[None]:
    """The folder of a call that computes all at once and writes at the end; made first, so that it is seen to be writable.

    Raises:
        BadRun: the folder is taken or cannot be written.
        Stopped: Ctrl-C.
    """
    from circuitdisc.runs import check_free, stoppable, workspace

    check_free(folder)
    with stoppable(command), workspace(folder):
        yield


@contextmanager
def work_in(folder: Path, command: str) -> Iterator["Journal"]:
    """The journal in the folder of a new call, or of one that was killed.

    A call that fails before it has found anything leaves nothing.

    Args:
        command: that the user typed, for what is said after Ctrl-C.

    Raises:
        BadRun: the folder holds something else, or a finished result; or another process writes in it.
        Stopped: Ctrl-C; it says what goes on.
    """
    from circuitdisc.runs import Journal, check_free, stoppable, with_out, workspace

    killed = (folder / JOURNAL).is_file() and not (folder / RESULT).exists() and not (folder / "config.json").exists()
    if not killed:
        if (folder / RESULT).exists():
            raise BadRun(f"the folder {folder} already exists and holds a result: choose another with out=, or remove it")
        check_free(folder)

    def kept() -> bool:
        return bool(Journal.read(folder / JOURNAL).decisions)

    with stoppable(with_out(command, folder), kept), workspace(folder, kept):
        journal = Journal(folder / JOURNAL)
        try:
            yield journal
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
    from circuitdisc.pages.dcm import describe
    from circuitdisc.pages.description import description_text, write_description
    from circuitdisc.runs import versions

    record = {**{key: value for key, value in config.items() if key != "out"}, "versions": versions()}
    description = describe(result).noted(notes)
    write_description(folder / PAGE, description, heading=heading, subject=subject, settings=record)
    write_arrays(folder / ARRAYS, result.arrays())
    write_json(folder / RESULT, {"format": format, "version": 1, **record, "result": result.to_dict()})
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"
