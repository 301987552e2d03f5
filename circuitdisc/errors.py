"""Every error that a user can cause: one class per cause, each message says what is wrong, where, and what to do."""

import difflib
import re
import reprlib
from collections.abc import Iterable

MOST_CHARACTERS, MOST_IN_A_WORD = 480, 200  # of a message, and of a word in it: what is longer loses its middle
MOST_IN_A_NOTE = 1200  # characters of a warning, which a command writes as a line of its own
MOST_NAMES = 20  # of those that are known, in a message
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, 60, 60, 40


def shown(value: object) -> str:
    """A value as a message echoes it: as Python writes it, and short however long it is."""
    try:
        return shorten(_REPR.repr(value), 120)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return f"a {type(value).__name__} of very many digits"


def shorten(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text without its middle if it is long: its beginning says what is wrong, its end what to do."""
    if len(text) <= most:
        return text
    end = most * 2 // 5
    return f"{text[: most - end - 5]} ... {text[-end:]}"


def tidy(text: str, most: int = MOST_CHARACTERS) -> str:
    """A message for a terminal: no control characters (which a file may hold), no word or whole of any length."""
    text = "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text)
    return shorten(
        re.sub(rf"\S{{{MOST_IN_A_WORD + 1},}}", lambda word: shorten(word[0], 80).replace(" ... ", "..."), text), most
    )


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are like this one."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5) if len(name) <= MOST_IN_A_WORD else []


class CircuitdiscError(Exception):
    """The base of all errors that the command line shows as one sentence, with exit status 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(tidy(str(message)))


class CircuitdiscWarning(UserWarning):
    """Something that a reader of the result must know, but that does not end the run."""


class UnknownName(CircuitdiscError):
    """A model, task, algorithm, metric or setting that does not exist; the nearest names are offered."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        known, name = sorted(known), str(name)
        near = nearest(name, known)
        more = ["..."] if len(known) > MOST_NAMES else []
        offer = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known[:MOST_NAMES] + more) or 'none'}."
        super().__init__(f"unknown {kind} '{shorten(name, 80)}'. {offer}{' ' + hint if hint else ''}")


class BadSetting(CircuitdiscError):
    """A setting whose value cannot be used."""


class BadFile(CircuitdiscError):
    """A file that is missing, malformed or truncated; the message names the file and, where there is one, the line."""


class BadTask(CircuitdiscError):
    """Examples that cannot be used as a task: unequal lengths, answers of several tokens, too few examples."""


class BadModel(CircuitdiscError):
    """A model that cannot be loaded, is not supported, or fails the self-check."""


class MetricAtChance(CircuitdiscError):
    """The model does not do the task, so that there is no circuit to find."""


class NothingToExplain(CircuitdiscError):
    """The corrupted prompts change nothing that can be told from noise, so that there is nothing for a circuit to explain."""


class GraphMismatch(CircuitdiscError):
    """A circuit or an edge that belongs to another architecture than the model at hand."""


class BadRun(CircuitdiscError):
    """A run folder that already exists, is not a run, or cannot be written."""


class BusyFolder(BadRun):
    """A folder in which another process writes.

    Args:
        folder: which.
    """

    def __init__(self, message: str, folder: object) -> None:
        super().__init__(message)
        self.folder = folder


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a sentence on what was kept and which command goes on with it."""
