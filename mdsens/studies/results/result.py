"""What studies found, as objects that print as their tables."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class Result:
    """Base class of what the functions of `mdsens.studies` return.

    Attributes:
        units: of `"parameters"` and of `"observables"` by name, as files have them, where they are known.
    """

    units: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        from mdsens.studies.results.recording import collected_of
        from mdsens.studies.results.text_tables import tables_of

        return "\n".join([type(self).__name__, *tables_of(collected_of(self))]).rstrip()  # type: ignore[arg-type]
