"""A package as pip would have installed it: a module, and entry points that name what is in it."""

import sys

VERSION = "1.5"


def install(monkeypatch, folder, group, entries, source, module):
    """Put a package on Python's path.

    Args:
        folder: it is put there; its name is the package's.
        group: of the entry points.
        entries: name -> where it is.
        source: of the module.
        module: its name.
    """
    folder.mkdir()
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{folder.name}-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: {VERSION}\n")
    lines = [f"{key} = {target}" for key, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
