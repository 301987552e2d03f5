"""What a command gives: text for people, and the same as data, which `--json` prints."""

import json
from collections.abc import Mapping
from typing import Any

JSON = "--json"


class Output(str):
    """The text that a command prints.

    Args:
        data: what `--json` prints in its place.
    """

    data: Mapping[str, Any]

    def __new__(cls, text: str, data: Mapping[str, Any]) -> "Output":
        made = super().__new__(cls, text)
        made.data = data
        return made


def as_output(text: str) -> Output:
    """What a command printed, with its data; of a command that gives text alone that."""
    return text if isinstance(text, Output) else Output(text, {"text": text})


def as_json(command: str, text: str) -> str:
    """What `--json` prints: the command, and its data."""
    from circuitdisc.results import plain

    return json.dumps(plain({"command": command, **as_output(text).data}), indent=1, ensure_ascii=False, allow_nan=False)
