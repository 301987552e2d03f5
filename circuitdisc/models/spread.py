"""A model whose layers are spread over devices, memory and disk, by accelerate: `parallel.device_map=auto`.

Slow, and it always fits: layers on a GPU run there, and those in memory or on disk are brought to it one after the other. It
runs through hooks (`models/hooked.py`).
"""

import weakref
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from circuitdisc.models.pretrained import load_by_map


def load_spread(folder: Path, dtype: torch.dtype, device_map: str | Mapping[str, Any]) -> Any:
    """The causal language model in a folder, spread.

    Args:
        device_map: a word of accelerate's, or module -> device, `cpu` or `disk`.

    Raises:
        BadFile, BadModel: as `load_pretrained`.
    """
    room = TemporaryDirectory(prefix="circuitdisc-")  # for what is on disk and not as it is in the files
    module = load_by_map(folder, dtype, device_map if isinstance(device_map, str) else dict(device_map), Path(room.name))
    weakref.finalize(module, room.cleanup)
    return module
