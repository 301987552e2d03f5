"""Words for messages about models: the beginning of somebody else's error, and names of tensors."""

from collections.abc import Iterable


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of an error of another library, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if len(line) <= most else f"{line[: most - 3]}..."


def some_names(names: Iterable[str], most: int = 3) -> str:
    """The first names and how many more there are; long ones without their middle."""
    ordered = sorted(names)
    shown = ", ".join(name if len(name) <= 64 else f"{name[:30]}...{name[-30:]}" for name in ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"
