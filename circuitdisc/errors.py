"""Every error that a user can cause: one class per cause, each message says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class CircuitdiscError(Exception):
    """The base of all errors that the command line shows as one sentence, with exit status 2."""


class CircuitdiscWarning(UserWarning):
    """Something that a reader of the result must know, but that does not end the run."""


class UnknownName(CircuitdiscError):
    """A model, task, algorithm, metric or setting that does not exist; the nearest names are offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        offer = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known) or 'none'}."
        super().__init__(f"unknown {kind} '{name}'. {offer}{' ' + hint if hint else ''}")


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


class GraphMismatch(CircuitdiscError):
    """A circuit or an edge that belongs to another architecture than the model at hand."""


class BadRun(CircuitdiscError):
    """A run folder that already exists, is not a run, or cannot be written."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a sentence on what was kept and which command goes on with it."""
