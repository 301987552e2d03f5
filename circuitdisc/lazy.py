"""Values that are computed once, when they are first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class computed_once(Generic[T]):
    """`functools.cached_property` without its lock, which Python 3.11 holds for all instances while one is computed: a rank
    that computes waits for the others, who must be able to compute, too.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "computed_once[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> "T | computed_once[T]":
        if instance is None:
            return self
        value = self.compute(instance)
        instance.__dict__[self.name] = value  # found there before this is asked again
        return value
