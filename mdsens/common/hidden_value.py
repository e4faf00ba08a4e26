"""`HiddenValue`: a value beside what is compiled."""

import dataclasses
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenValue(Generic[T]):
    """A value that a pytree carries past compiled programs, which never see it.

    All are equal: as a static field it never makes JAX compile again.
    """

    value: T

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HiddenValue)

    def __hash__(self) -> int:
        return hash(HiddenValue)
