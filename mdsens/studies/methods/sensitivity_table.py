"""Derivatives of observables: which parameter drives which number, scaled so that parameters compare."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.sensitivities import sensitivity
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.studies.methods.observed import (
    Observables,
    States,
    by_name,
    differentiate,
    join_observables,
    rounding,
    split,
    units_of,
)
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import Record, add_prefix
from mdsens.studies.results.result import Result


@dataclasses.dataclass(frozen=True, repr=False)
class SensitivityTable(Result):
    """Derivatives of observables g in parameters θ.

    Attributes:
        names: of the parameters, one for each number.
        parameters: θ.
        values: g by name.
        derivatives: dg/dθ by name, `(*g.shape, parameters)`.
        trusted: whether the certificates of all equilibria trust the derivatives; None where they were not asked for.
        reasons: what speaks against the derivatives.
        rounding: by name, the change of g when atoms move by 1e-7 of their distance: smaller changes mean nothing.
    """

    _study_kind: ClassVar[str] = "sensitivity"

    names: tuple[str, ...]
    parameters: Float[np.ndarray, " parameters"]
    values: dict[str, np.ndarray]
    derivatives: dict[str, np.ndarray]
    trusted: bool | None
    reasons: tuple[str, ...]
    rounding: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def scaled(self) -> dict[str, np.ndarray]:
        """θ dg/dθ, in the units of g: its change by a change of θ of 100 %, to first order."""
        return {name: self.parameters * slope for name, slope in self.derivatives.items()}

    @property
    def elasticity(self) -> dict[str, np.ndarray]:
        """(θ/g) dg/dθ: the change of g in per cent by a change of θ of one per cent; NaN where g is 0, or rounding."""
        least = {name: self.rounding.get(name, np.zeros(())) for name in self.values}
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                name: np.where(
                    (np.abs(self.values[name]) <= least[name])[..., None], np.nan, scaled / self.values[name][..., None]
                )
                for name, scaled in self.scaled.items()
            }

    def ranking(self, observable: str | None = None) -> list[tuple[str, float]]:
        """Return parameters by influence, the largest first: the norm of θ dg/dθ over the components of an observable.

        Without a name, over all observables, each in units of its own largest influence.

        Raises:
            InputError: an observable that is not there.
        """
        if observable is not None and observable not in self.derivatives:
            raise InputError(f"There is no observable {observable!r}.{did_you_mean(observable, self.derivatives)}")
        influence = {}
        for name, scaled in self.scaled.items() if observable is None else [(observable, self.scaled[observable])]:
            significant = np.where(np.abs(scaled) > self.rounding.get(name, np.zeros(()))[..., None], scaled, 0.0)
            influence[name] = np.linalg.norm(significant.reshape(-1, len(self.names)), axis=0)
        if observable is None:
            influence = {name: sizes / (sizes.max() or 1.0) for name, sizes in influence.items()}
        total = np.linalg.norm(list(influence.values()), axis=0)
        return [(self.names[k], float(total[k])) for k in np.argsort(-total, kind="stable")]

    def _numbers(self) -> Record:
        arrays = {
            "parameters": self.parameters,
            **add_prefix("values", self.values),
            **add_prefix("derivatives", self.derivatives),
        }
        return Record(arrays, {"names": list(self.names), "trusted": self.trusted, "reasons": list(self.reasons)})


@suggest_names
def sensitivity_table(
    states: States, observables: Observables, *, wrt: Sequence[str] | str | None = None, certificate: bool = True
) -> SensitivityTable:
    """Return values and derivatives of observables at an equilibrium, or of several together.

        studies.sensitivity_table(eq, {"volume": ms.observables.volume}).ranking("volume")

    Args:
        states: an equilibrium, or several of one potential by name.
        observables: `g(system, potential)` by name; see `studies.Of` for several states.
        wrt: parameters; by default all.
        certificate: check whether the derivatives can be trusted, at the cost of one linear solve a parameter.

    Raises:
        as `mdsens.value_and_jacobian`.
    """
    named = by_name(states)
    selection = Selection.of(next(iter(named.values())).potential, wrt)
    observed = join_observables(observables, named)
    values, rows = differentiate(observed, named, selection)
    reasons = objections(named, wrt) if certificate else ()
    return SensitivityTable(
        selection.names,
        selection.values(),
        values,
        split(rows, values),
        (not reasons) if certificate else None,
        reasons,
        units=units_of(selection.potential, selection.names, observed, named),
        rounding=split(rounding(observed, named), values),
    )


def objections(states: Mapping[str, Equilibrium], wrt: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return what speaks against the derivatives of equilibria; nothing if they can be trusted."""
    reasons = []
    for name, eq in states.items():
        certificate = sensitivity(eq, wrt=wrt, progress=False, throw=False).certificate
        if not certificate.trusted:
            reasons += [f"{name}: {reason}" for reason in certificate.reasons]
    return tuple(reasons)
