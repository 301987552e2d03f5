"""How a model that one device does not hold is placed, and the processes that it is split over.

tensor=2           its heads, MLP columns and vocabulary are split over two processes (`models/split.py`)
device_map=auto    its layers are spread over devices, memory and disk (`models/spread.py`)
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from circuitdisc.checks import Whole
from circuitdisc.errors import BadModel, BadSetting, UnknownName, shown

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AUTO = "auto"


@dataclass(frozen=True)
class Parallel:
    """How a model is placed.

    Args:
        tensor: over how many processes it is split.
        device_map: how its layers are spread: `auto`, or part of the model -> `cpu`, `disk` or a device.
    """

    tensor: int = 1
    device_map: str | Mapping[str, Any] | None = None

    @classmethod
    def of(cls, given: object) -> "Parallel":
        """From what a person gives: a table, or none.

        Raises:
            BadSetting, UnknownName: it is not one.
        """
        if isinstance(given, cls):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise BadSetting(f"parallel={shown(given)} is no table: give {{'tensor': 2}}, or parallel.tensor=2")
        names = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in names:
                raise UnknownName("setting of parallel", str(name), names)
        parallel = cls(**given)
        Whole(1, 1024).check("parallel.tensor", parallel.tensor)
        device_map = parallel.device_map
        if device_map is not None and device_map != AUTO and not isinstance(device_map, Mapping):
            raise BadSetting(
                f"parallel.device_map={shown(device_map)} is neither auto nor a table of the model's parts, as in "
                "{'': cpu, model.layers.7: disk}"
            )
        if parallel.tensor > 1 and parallel.device_map is not None:
            raise BadSetting("parallel.tensor splits every layer and parallel.device_map spreads whole ones: give one of them")
        return parallel


def check_placed(parallel: Parallel, name: str, components: str, adapter: bool, gguf: bool) -> None:
    """A model's files and settings go together with how it is placed.

    Args:
        name: of the model without an adapter's.
        components: the setting.
        adapter, gguf: whether there is an adapter, and whether it is a GGUF file.

    Raises:
        BadModel, BadSetting: they do not.
    """
    if parallel == Parallel():
        return
    way = "parallel.tensor" if parallel.tensor > 1 else "parallel.device_map"
    if adapter or gguf:
        what = "an adapter is merged into weights that are whole in memory" if adapter else "a GGUF file is unpacked in memory"
        raise BadModel(f"{name}: {what}, and {way} reads weights share by share: save the model as safetensors first")
    wanted = {"parallel.tensor": ("auto", "fast"), "parallel.device_map": ("auto", "hooks")}[way]
    if components not in wanted:
        raise BadSetting(f"{way} runs models with components={wanted[1]}, and components={components} is asked for")


def tensor_processes(size: int, device: str) -> "DeviceMesh":
    """The processes that share a model with this one: of all processes, `size` consecutive ones.

    Args:
        device: that models run on.

    Raises:
        BadSetting: there are not as many processes, or they do not divide.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        start_processes(device, f"parallel.tensor={size} splits the model over {size} processes")
    world = dist.get_world_size()
    if world % size:
        raise BadSetting(
            f"parallel.tensor={size} splits the model over {size} processes, and there are {world}: start a multiple of "
            f"{size}, as in `torchrun --nproc-per-node {size} -m circuitdisc ...`"
        )
    return _mesh(size, device.partition(":")[0], dist.group.WORLD)


def start_processes(device: str, what: str) -> None:
    """Join the processes that torchrun has started.

    Args:
        what: needs them, for the message.

    Raises:
        BadSetting: torchrun has started none.
    """
    import torch
    import torch.distributed as dist

    if "WORLD_SIZE" not in os.environ:
        raise BadSetting(
            f"{what}, and this is a single one: start the command as `torchrun --nproc-per-node N -m circuitdisc ...`, with "
            "parallel.tensor=N among its words; a command that takes a run's model as it was cannot split it"
        )
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


@cache
def _mesh(size: int, kind: str, everyone: object) -> "DeviceMesh":
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(kind, (dist.get_world_size() // size, size), mesh_dim_names=("copy", "tensor"))["tensor"]
