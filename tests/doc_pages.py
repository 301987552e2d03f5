"""README and docs/*.md taken apart: their Python blocks, and the commands in their examples and in their prose."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


@dataclass(frozen=True)
class Block:
    """A Python block, and the line of its page that it begins on."""

    line: int
    code: str


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.S | re.M)
    return [Block(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


def commands(page: str) -> list[str]:
    """Commands that stand on lines of their own, indented, without their comments; one may go on behind a backslash."""
    text = PAGES[page].read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    ((?:torchrun .* -m )?circuitdisc (?:(?!note:)\S).*)$", text, re.M)
    return [" ".join(line.partition("  #")[0].split()) for line in lines]


def mentioned(page: str) -> list[str]:
    """Commands that the prose names, in backquotes."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [words for words in re.findall(r"`(circuitdisc [^`\n]+)`", text) if not words.endswith(":")]


def words(command: str) -> list[str]:
    """What stands behind `circuitdisc`."""
    typed = shlex.split(command)
    return typed[typed.index("circuitdisc") + 1 :]


class _Smaller(ast.NodeTransformer):
    """Numbers of examples, of draws and of steps are made small, in calls and in sections of settings."""

    def __init__(self, most: dict[str, int]) -> None:
        self.most = most

    def _less(self, name: str | None, value: ast.expr) -> ast.expr:
        is_number = isinstance(value, ast.Constant) and isinstance(value.value, int)
        return ast.Constant(min(value.value, self.most[name])) if is_number and name in self.most else self.visit(value)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        node.value = self._less(node.arg, node.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        node.values = [self._less(name if isinstance(name, str) else None, value) for name, value in zip(names, node.values)]  # noqa: B905
        return node


def smaller(code: str, most: dict[str, int]) -> ast.Module:
    """The same code with small numbers."""
    return ast.fix_missing_locations(_Smaller(most).visit(ast.parse(code)))
