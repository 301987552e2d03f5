"""One call on many processes: examples are spread over ranks, and what is measured is gathered.

`torchrun` starts the same program several times. Every process (a *rank*) runs all of it, with its share of the examples where
the examples count; what a share gave is gathered in the order of the ranks, which is that of the examples, in float64:

    share, mine = shared(examples)                       # all of them, where there is one process
    values = gathered(metric_values(mine), share)        # those of all examples, on every rank

So every rank knows the same numbers and decides the same, without being told. With one process there is no share, nothing is
copied and torch.distributed is not imported.

Ranks compare what they ask for: ranks that have come apart end in an error, never in a number. Nothing is unpickled: tensors
and JSON go between them.

Shape letters: B examples, k rows of one rank.
"""

import json
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from circuitdisc.errors import BadRun, RanksLost

T = TypeVar("T")
Values = TypeVar("Values", Tensor, np.ndarray)
LONGEST_WAIT = timedelta(minutes=30)
"""For a rank that lives and does not answer; one that has died is noticed at once."""


@dataclass(frozen=True)
class Share:
    """What a rank has of some examples.

    Args:
        n: how many there are on all ranks.
        spare: another rank has this rank's, too (there are fewer than ranks), or it has none: its values do not count.
    """

    n: int
    spare: bool = False


class Ranks:
    """The ranks over which examples are spread, as one of them sees them; a single one here.

    Args:
        index: of this one.
        n: how many there are.
    """

    def __init__(self, index: int = 0, n: int = 1) -> None:
        self.index, self.n, self.n_calls = index, n, 0
        self.groups: dict[int, Ranks] = {}
        self.everyone: Ranks = self
        """All ranks of the call; more than these where several run one model together."""

    def gather(self, rows: Shaped[Tensor, "k *X"], what: str) -> list[Tensor]:
        """The rows of every rank, in the order of ranks; their number may differ, their size may not.

        Raises:
            BadRun: the ranks ask for different things.
        """
        self.n_calls += 1
        question = zlib.crc32(f"{what} {rows.dtype} {tuple(rows.shape[1:])}".encode())
        own = torch.tensor([self.n_calls, question, len(rows)])
        asked = torch.stack(self._gather(own))
        if (asked[:, :2] != own[:2]).any():
            raise BadRun(
                f"the processes of this call have come apart (process {self.index} gathers {what}, others do not): please "
                "report it. One process alone does the same work"
            )
        counts = asked[:, 2].tolist()
        if max(counts) * math.prod(rows.shape[1:]) == 0:
            return [rows.new_zeros(count, *rows.shape[1:]) for count in counts]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        return [part[:count] for part, count in zip(self._gather(padded), counts, strict=True)]

    def broadcast(self, data: bytes) -> bytes:
        """The first rank's bytes."""
        size = int(self.gather(torch.tensor([len(data)]), "size of bytes")[0])
        own = np.frombuffer(data if self.index == 0 else bytes(size), dtype=np.uint8).copy()
        return self._broadcast(torch.from_numpy(own)).numpy().tobytes() if size else b""

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        """Equally large tensors of all ranks, on the CPU."""
        return [tensor]

    def _broadcast(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor)[0]


class ProcessRanks(Ranks):
    """Processes that `torchrun` has started.

    Args:
        group: of torch.distributed.
    """

    def __init__(self, index: int, n: int, group: Any) -> None:
        super().__init__(index, n)
        self.group = group

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        from torch import distributed

        parts = [torch.empty_like(tensor) for _ in range(self.n)]
        with self._noticing():
            distributed.all_gather(parts, tensor.contiguous(), group=self.group)
        return parts

    def _broadcast(self, tensor: Tensor) -> Tensor:
        from torch import distributed

        with self._noticing():
            distributed.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """What torch.distributed raises where a process has died, or does not answer, is said as that."""
        try:
            yield
        except RuntimeError as error:
            raise RanksLost(self.n) from error


class ThreadRanks(Ranks):
    """Ranks as threads of one process, which share the model: to try, and to count, what many ranks would do."""

    def __init__(self, index: int, n: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__(index, n)
        self.barrier, self.board = barrier, board

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        self.board[self.index] = tensor
        try:
            self.barrier.wait()
            parts = list(self.board)
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RanksLost(self.n) from error
        return parts


_ALONE = Ranks()
_current: ContextVar[Ranks] = ContextVar("ranks", default=_ALONE)


def ranks() -> Ranks:
    """The ranks over which examples are spread now."""
    return _current.get()


@contextmanager
def spread_over(chosen: Ranks) -> Iterator[None]:
    """Spread examples over these ranks."""
    token = _current.set(chosen)
    try:
        yield
    finally:
        _current.reset(token)


def alone() -> Any:
    """Work that only one rank does: it spreads nothing, and waits for nobody."""
    return spread_over(_ALONE)


# --- examples and values --------------------------------------------------------------------------------------------------


def shared(items: Sequence[T]) -> tuple[Share | None, Sequence[T]]:
    """This rank's part of some examples, in their order, as large as the others' within one; no share with one process."""
    ours = ranks()
    if ours.n == 1:
        return None, items
    n = len(items)
    if n < ours.n:
        return Share(n, spare=ours.index >= n), items[min(ours.index, n - 1) :][:1]
    return Share(n), items[n * ours.index // ours.n : n * (ours.index + 1) // ours.n]


def largest_share(n: int) -> int:
    """Examples of the rank that has most of n."""
    return -(-n // ranks().n)


def turns(count: int) -> Iterator[tuple[Share | None, int | None]]:
    """Units that ranks take in turn: in each round this rank's, if it has one.

    Gathered round by round, they come in their order, whoever computed them, and nothing depends on the number of ranks.
    """
    ours = ranks()
    for first in range(0, count, ours.n):
        mine = first + ours.index
        yield (None if ours.n == 1 else Share(count, spare=mine >= count)), (mine if mine < count else None)


def gathered(values: Values, share: Share | None, what: str = "values", axis: int = 0) -> Values:
    """Values of all ranks, in the order of their examples, from this rank's; without a share these are all.

    Args:
        axis: that of the examples, or of whatever else each rank has some of.
    """
    if share is None:
        return values
    given = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    rows = given.detach().movedim(axis, 0).cpu().double()
    whole = torch.cat(ranks().gather(rows[:0] if share.spare else rows, what)).movedim(0, axis)
    return whole.to(given) if isinstance(values, Tensor) else whole.numpy().astype(values.dtype)


def summed(values: Shaped[Tensor, "*X"], share: Share | None, what: str) -> Shaped[Tensor, "*X"]:
    """The sum, in the order of ranks and in float64, of what each has of its examples."""
    return values if share is None else gathered(values.double()[None], share, what).sum(0).to(values)


def across(pick: Callable[[list[int]], int], value: int, share: Share | None) -> int:
    """The least (`min`) or the most (`max`) of the ranks' values: of what must be the same on each of them."""
    return value if share is None else pick([int(part) for part in ranks().gather(torch.tensor([value]), "numbers")])


def agreed(value: Any) -> Any:
    """Rank 0's value, plain JSON, on every rank: for what depends on the machine or the moment."""
    everyone = ranks().everyone
    return value if everyone.n == 1 else json.loads(everyone.broadcast(json.dumps(value).encode()))


# --- ranks that are processes, or threads ---------------------------------------------------------------------------------


def join(rank: int, n: int, store: Any) -> Ranks:
    """Become one of n processes; the others join, too.

    On CPUs gloo carries tensors, on GPUs nccl; what is gathered here lies on the CPU.

    Args:
        store: of torch.distributed, through which they find each other.
    """
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=LONGEST_WAIT)
    except RuntimeError as error:
        raise BadRun(f"the {n} processes of this call do not find each other: {error}") from error
    return ProcessRanks(rank, n, distributed.group.WORLD)


def by_groups(everyone: Ranks, size: int) -> Ranks:
    """The ranks over which examples are spread where `size` ranks next to each other run one model together.

    Rank r is in group r // size, and has the examples of its group.
    """
    from torch import distributed

    assert everyone.n % size == 0, "groups are equally large"
    lines = [distributed.new_group(list(range(first, everyone.n, size))) for first in range(size)]  # made by all, in order
    ours = ProcessRanks(everyone.index // size, everyone.n // size, lines[everyone.index % size])
    ours.everyone = everyone
    return ours


def run_together(size: int) -> None:
    """From now on `size` ranks next to each other run one model together, and examples are spread over such groups."""
    ours, everyone = ranks(), ranks().everyone
    if everyone.n > 1 and ours.n * size != everyone.n:
        groups = everyone.groups
        if size not in groups:
            groups[size] = by_groups(everyone, size) if size > 1 else everyone
        _current.set(groups[size])


def simulated(n: int, work: Callable[[int], T]) -> list[T]:
    """Do work as each of n ranks, which are threads; returns what each gave.

    Args:
        work: index of a rank -> anything.
    """
    barrier, board = threading.Barrier(n), [None] * n
    results: list[Any] = [None] * n
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            with spread_over(ThreadRanks(index, n, barrier, board)):
                results[index] = work(index)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=copy_context().run, args=(run, index)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, RanksLost)), errors[0])
    return results
