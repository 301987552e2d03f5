"""A model whose layers are spread over devices, memory and disk: `parallel.device_map=auto`.

Slow, and it always fits: a layer on a GPU runs there; one in memory or on disk is brought to the first GPU while it runs, or
runs on the CPU where there is none, from a file that is mapped into memory. The model runs through hooks
(`models/hooked.py`); the machine's memory holds it once, while it is loaded.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from circuitdisc.errors import BadSetting
from circuitdisc.identity import hash_weights
from circuitdisc.models.stored import read_tensors
from circuitdisc.models.streamed import lent
from circuitdisc.models.wording import first_line

SHARE_FOR_WEIGHTS = 0.8  # of a device's free memory; the rest is for activations


def spread(module: Any, device_map: str | Mapping[str, Any], name: str) -> None:
    """Spread a module that is whole in memory and made ready for its hooks, in place.

    Args:
        device_map: `auto`, which fills GPUs, memory and disk in turn; or part of the model -> device, `cpu` or `disk`: the
            longest name counts, and '' is the rest.
        name: of the model, for messages.

    Raises:
        BadSetting: it cannot be spread so.
    """
    module.weights_hash = hash_weights(module)  # while all weights are at hand
    parts = _parts(module)
    try:
        places = _filled(parts) if isinstance(device_map, str) else _given(module, parts, device_map)
        main = next((place for place in places.values() if place not in ("cpu", "disk")), "cpu")
        room = TemporaryDirectory(prefix="circuitdisc-")
        weakref.finalize(module, room.cleanup)
        moved: dict[int, Tensor] = {}
        for number, (part, place) in enumerate(places.items()):
            _put(parts[part], place, Path(room.name) / f"{number}.safetensors", moved)
            if main != "cpu":
                _run_on(parts[part], main if place in ("cpu", "disk") else place, lends=place in ("cpu", "disk"))
    except (
        RuntimeError,
        AssertionError,
        OSError,
        ValueError,
    ) as error:  # torch's, for a device that there is not, or is full; of the disk
        raise BadSetting(f"{name} cannot be spread as parallel.device_map says: {first_line(error)}") from error


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Every layer, and every part with weights beside the layers."""
    every, parts = dict(module.named_modules()), dict[str, nn.Module]()
    for name, part in every.items():
        is_layer = isinstance(every.get(name.rpartition(".")[0]), nn.ModuleList)
        holds_layers = not is_layer and any(isinstance(inner, nn.ModuleList) for inner in part.modules())
        if name and not holds_layers and not any(name.startswith(f"{above}.") for above in parts):
            parts[name] = part
    return parts


def _filled(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The first place with room for each part, in the order in which they run."""
    from accelerate.utils import get_max_memory

    room = {place: int(free * SHARE_FOR_WEIGHTS) for place, free in get_max_memory().items()} | {"disk": 2**62}
    places: dict[str, Any] = {}
    for name, part in parts.items():
        size = sum(tensor.numel() * tensor.element_size() for _, _, tensor in _tensors(part))
        places[name] = next(place for place, left in room.items() if size <= left)
        room[places[name]] -= size
    return places


def _given(module: nn.Module, parts: Mapping[str, nn.Module], device_map: Mapping[str, Any]) -> dict[str, Any]:
    """Each part's place.

    Raises:
        BadSetting: a name is no part of the model, or a part has no place.
    """
    every = dict(module.named_modules())
    for name in device_map:
        if name not in every:
            raise BadSetting(f"parallel.device_map: the model has no part '{name}'; its parts are {', '.join(parts)}")
    places: dict[str, Any] = {}
    for name in parts:
        above = [given for given in device_map if not given or name == given or name.startswith(f"{given}.")]
        if not above:
            raise BadSetting(f"parallel.device_map gives no place for '{name}': add one for '', which is the rest")
        places[name] = device_map[max(above, key=len)]
    return places


def _tensors(part: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for inner in part.modules():
        for table in (inner._parameters, inner._buffers):
            yield from ((table, name, tensor) for name, tensor in table.items() if tensor is not None)


@torch.no_grad()
def _put(part: nn.Module, place: Any, file: Path, moved: dict[int, Tensor]) -> None:
    """Put a part's weights in their place; those that another part has already moved are shared with it."""
    if place == "cpu":
        return
    tensors = {str(id(tensor)): tensor for _, _, tensor in _tensors(part) if id(tensor) not in moved}
    if place == "disk" and tensors:
        from safetensors.torch import save_file

        save_file(
            {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, file
        )
        there = read_tensors([file])
    else:
        there = {name: tensor.detach().to(place) for name, tensor in tensors.items()}
    for name, tensor in there.items():
        before = tensors[name]
        moved[id(before)] = nn.Parameter(tensor, requires_grad=False) if isinstance(before, nn.Parameter) else tensor
        moved[id(moved[id(before)])] = moved[id(before)]
    for table, name, tensor in list(_tensors(part)):
        table[name] = moved[id(tensor)]


def _run_on(part: nn.Module, device: Any, lends: bool) -> None:
    """Have a part run on a device, its inputs brought there; and its weights, for as long as it runs, if it `lends`."""
    from accelerate.utils import send_to_device

    lending: list[AbstractContextManager[None]] = []

    def begin(part: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if lends:
            lending.append(lent(part, None, device))
            lending[-1].__enter__()
        return send_to_device(args, device), send_to_device(kwargs, device)

    def end(*_: Any) -> None:
        if lending:
            lending.pop().__exit__(None, None, None)

    part.register_forward_pre_hook(begin, with_kwargs=True)
    part.register_forward_hook(end, always_call=True)
