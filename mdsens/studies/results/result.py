"""Results of studies in Python, objects that print as their tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mdsens.common.errors import InputError
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.files.provenance import current_provenance
from mdsens.studies.results.record import Collected, Outcome, Record, merge, with_structures
from mdsens.studies.results.text_tables import study_lines


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class Result:
    """The base class of results of `mdsens.studies`.

    Attributes:
        units: units of `"parameters"` and of `"observables"` by name, as files have them, where they are known.
    """

    units: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    _study_kind: ClassVar[str] = ""
    """The kind of study whose result it is; empty where it has no table of its own."""

    def __repr__(self) -> str:
        return "\n".join([type(self).__name__, *study_lines(self.collected())]).rstrip()

    def _numbers(self) -> Record:
        """Return its numbers and plain values, without structures and units."""
        raise NotImplementedError

    def record(self) -> Record:
        """Return its numbers by path and plain values, as files keep them, without the structures."""
        return merge(self._numbers(), Record({}, {"units": self.units}))

    def _structures(self) -> Mapping[str, Equilibrium]:
        """Return the equilibria by name that files keep with it."""
        return {}

    def collected(self) -> Collected:
        """Return the result as if it had been read from a collected file.

        Raises:
            InputError: it has no table of its own.
        """
        if not self._study_kind:
            raise InputError(f"{type(self).__name__} is exported as a part of an uncertainty study only.")
        states = self._structures()
        record = with_structures(self.record(), states) if states else self.record()
        return Collected(self._study_kind, "", (outcome(self._study_kind, {}, record),))


def outcome(label: str, parameters: Mapping[str, float], record: Record, reason: str = "") -> Outcome:
    """Return a result as if it were that of a task of a study."""
    recipe: dict[str, Any] = {"parameters": dict(parameters), "observables": {}, "structures": {}}
    return Outcome(label, label, recipe, record, reason, current_provenance())
