"""A value that compiled programs never see."""

import dataclasses
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenValue(Generic[T]):
    """A value that a pytree carries past compiled programs. All are equal: as a static field it never makes JAX compile again."""

    value: T

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HiddenValue)

    def __hash__(self) -> int:
        return hash(HiddenValue)
