"""A module whose weights stay in their files, in the files' precision: a part of it gets weights to run with while it runs.

So a process that has its share of a split model can still run the module itself, whole and independently of how it was split,
and needs memory for a single layer's matrix beside the share.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitdisc.models.own_run import OwnRun


@contextmanager
def lent(module: nn.Module, dtype: torch.dtype | None, device: Any = "cpu", *, at_most: int | None = None) -> Iterator[None]:
    """Put weights of another precision, elsewhere, into a module for a while.

    Args:
        dtype: of parameters; None leaves it.
        at_most: leave weights of more axes as they are.
    """
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for part in module.modules():
            for table, to in ((vars(part)["_parameters"], dtype), (vars(part)["_buffers"], None)):
                for name, tensor in table.items():
                    if tensor is None or (at_most is not None and tensor.dim() > at_most):
                        continue
                    there = tensor.detach().to(device, to if tensor.is_floating_point() else None)
                    before.append((table, name, tensor))
                    table[name] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
        yield
    finally:
        for table, name, tensor in before:
            table[name] = tensor


class StreamedRun(OwnRun):
    """A module's own run, one part with weights after the other.

    Args:
        files: of its weights; a file that is written again is another model.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: str, files: Collection[Path]) -> None:
        super().__init__(module)
        self._dtype, self._device, self._files = dtype, device, tuple(files)

    def __call__(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        lending: dict[nn.Module, ExitStack] = {}

        def begin(part: nn.Module, *_: Any) -> None:
            lending[part] = ExitStack()
            lending[part].enter_context(_of_its_own(part, self._dtype, self._device))

        def end(part: nn.Module, *_: Any) -> None:
            lending.pop(part).close()

        with ExitStack() as hooks:
            for part in self.module.modules():
                if any(True for _ in part.parameters(recurse=False)) or any(True for _ in part.buffers(recurse=False)):
                    hooks.callback(part.register_forward_pre_hook(begin).remove)
                    hooks.callback(part.register_forward_hook(end, always_call=True).remove)
            return super().__call__(tokens, mask, positions)

    def _state(self, backend: object) -> tuple[Any, ...]:
        return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file in self._files for stat in (file.stat(),))


def _of_its_own(part: nn.Module, dtype: torch.dtype, device: str) -> Any:
    """`lent`, without the parts of the part."""
    alone = nn.Module()
    alone._parameters, alone._buffers = part._parameters, part._buffers
    return lent(alone, dtype, device)
