"""What the logs of cells say, by their lines alone."""

from pathlib import Path


def counts(folder: Path) -> dict[str, tuple[int, int]]:
    """How often each cell of a folder was begun, and how often it was done."""
    logs = {path.parent.name: path.read_text() for path in folder.glob("cells/*/log.jsonl")}
    return {name: (text.count('"event": "begun"'), text.count('"event": "done"')) for name, text in logs.items()}
