"""What other packages add under a name: their entry points, found without importing anything, loaded when asked for.

Source: the entry points of Python packages, https://packaging.python.org/en/latest/specifications/entry-points/.
"""

import sys
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from circuitdisc.errors import BadSetting


@dataclass(frozen=True)
class OutsideNames:
    """The entry points of one group.

    Args:
        group: as packages write it, `circuitdisc.algorithms`.
        what: what a name of this group is, `algorithm`; for messages.
    """

    group: str
    what: str

    def entries(self) -> dict[str, EntryPoint]:
        """All that other packages declare, by name; where two declare one name, the message of `refuse_clash` says so."""
        names: dict[str, EntryPoint] = {}
        for entry in _declared(self.group, tuple(sys.path)):
            names.setdefault(entry.name, entry)
        return names

    def refuse_clash(self, name: str, shipped: Container[str]) -> None:
        """Make sure that a name means one thing.

        Raises:
            BadSetting: another package declares a name of this package's, or two packages declare one name.
        """
        packages = [package_of(entry) for entry in _declared(self.group, tuple(sys.path)) if entry.name == name]
        a_name = f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what} '{name}'"
        if packages and name in shipped:
            raise BadSetting(
                f"package '{packages[0]}' declares {a_name}, which is the name of one of circuitdisc's own: "
                "rename its entry point, or uninstall that package"
            )
        if len(packages) > 1:
            raise BadSetting(
                f"packages {' and '.join(repr(package) for package in packages)} both declare {a_name}: "
                "rename one entry point, or uninstall one package"
            )

    def where(self, name: str) -> str:
        """What declares a name, and where it is, for messages."""
        entry = self.entries()[name]
        return f"{self.what} '{name}' of package '{package_of(entry)}' ({entry.value})"

    def load(self, name: str) -> Any:
        """What a name stands for, imported now.

        Raises:
            BadSetting: it cannot be imported.
        """
        try:
            return self.entries()[name].load()
        except Exception as error:  # importing another package's code can fail in any way
            words = " ".join(str(error).split())
            raise BadSetting(
                f"{self.where(name)} cannot be imported ({type(error).__name__}: {words}): mend or uninstall that package"
            ) from error


def package_of(entry: EntryPoint) -> str:
    """The name of the package that declares an entry point."""
    return entry.dist.name if entry.dist is not None else "unknown"


def versions_of(entry: EntryPoint) -> dict[str, str]:
    """The package that declares an entry point, and its version."""
    return {entry.dist.name: entry.dist.version} if entry.dist is not None else {}


@lru_cache(maxsize=16)
def _declared(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages declare; `path` is where Python looks for packages, so that a change of it counts."""
    return tuple(entry_points(group=group))
