"""Targets of a fit, its outcome, and whether it met them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.studies.results.record import Record
from mdsens.studies.results.result import Result

RANK_TOLERANCE = 1e-7
"""Singular value, relative to the largest, up to which the targets do not determine a direction."""

MISS_SIGMAS, MISS_SHARE, MISS_SHARE_OF_DESIGN = 3.0, 0.1, 1e-3
"""Deviation beyond which a target counts as missed: in its sigma; as a share of it if it has no sigma; the share of a design."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The value that an observable should have.

    `Target(ms.observables.volume, 160.2, sigma=0.1)` wants a volume of 160.2 Å³, give or take 0.1 Å³.

    Args:
        observable: `g(system, potential)`; see `studies.Of` for several structures.
        value: its value, of the observable's shape; NaN for components that do not matter.
        sigma: the standard deviation that the fit may be off by, one or of the same shape; by default 1, and then a target
            counts as met within a tenth of itself.
    """

    observable: Callable[..., Any]
    value: Any
    sigma: Any = None


class DesignTarget(Target):
    """A target of a design, whose sigma is its size."""


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration(Result):
    """The outcome of a fit.

    Attributes:
        potential: the fitted one.
        names: of the parameters that varied.
        start, parameters: their values before and after.
        std: their standard deviations by the targets' σ and the priors; inf where nothing determines them, NaN where more
            than 1,000 varied.
        found, wanted, sigma: of the targets' components, with `labels`.
        cost: the minimum of the sum of squares.
        converged: whether the fit arrived, and met the targets as far as bounds and priors let it; `message` says how it ended.
        relaxations: number of structures that were relaxed.
        evaluations: number of evaluations of all targets together.
        singular_values: of the targets in relative changes of the parameters, the largest first; none where more than 1,000
            parameters varied.
        directions: rows, right singular vectors.
        states: the equilibria by name.
        history: the cost of each step that was accepted; with an optimizer, of each step.
        missed: targets that were not met: off by more than three sigma; a tenth of themselves where no sigma was given; a
            thousandth for a design.
        design: whether the targets are a design's, wanted as they are: `std` and `sigma` have no meaning then.
    """

    potential: Potential
    names: tuple[str, ...]
    start: Float[np.ndarray, " chosen"]
    parameters: Float[np.ndarray, " chosen"]
    std: Float[np.ndarray, " chosen"]
    labels: tuple[str, ...]
    found: Float[np.ndarray, " components"]
    wanted: Float[np.ndarray, " components"]
    sigma: Float[np.ndarray, " components"]
    cost: float
    converged: bool
    message: str
    relaxations: int
    evaluations: int
    singular_values: Float[np.ndarray, " directions"]
    directions: Float[np.ndarray, "directions chosen"]
    states: dict[str, Equilibrium] = dataclasses.field(repr=False)
    history: tuple[float, ...]
    missed: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    design: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def undetermined(self) -> tuple[dict[str, float], ...]:
        """Directions that the targets do not determine: relative changes of parameters that leave all targets as they are."""
        if not len(self.singular_values):
            return ()
        smallest = RANK_TOLERANCE * self.singular_values[0]
        chosen = self.directions[self.singular_values <= smallest]
        return tuple({name: float(part) for name, part in zip(self.names, row, strict=True)} for row in chosen)

    def _numbers(self) -> Record:
        fields = ("start", "parameters", "std", "found", "wanted", "sigma", "singular_values", "directions", "history")
        facts = {name: getattr(self, name) for name in ("converged", "message", "cost", "relaxations", "evaluations", "missed")}
        facts |= {"names": list(self.names), "labels": list(self.labels)}
        return Record({name: np.asarray(getattr(self, name)) for name in fields}, facts)

    @property
    def _study_kind(self) -> str:  # type: ignore[override]
        return "inverse" if self.design else "calibration"

    def _structures(self) -> dict[str, Equilibrium]:
        return self.states


def allowance(target: Target, wanted: np.ndarray, sigma: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the deviation up to which each number of a target counts as met; for a target of zero, a share of its start."""
    if target.sigma is not None and not isinstance(target, DesignTarget):
        return MISS_SIGMAS * sigma
    share = MISS_SHARE if target.sigma is None else MISS_SHARE_OF_DESIGN
    return share * np.where(wanted == 0.0, np.abs(start), np.abs(wanted))


def verdict(
    message: str, worst: str, told: str, *, count: int, at_bounds: Sequence[str], priors: bool, blind: bool
) -> tuple[bool, str]:
    """Return whether a fit that arrived but misses targets counts as converged, as bounds and priors allow, and its message.

    Args:
        worst, told: the target that is missed most, and by how much.
        count: targets that are missed.
        at_bounds: parameters at their bounds.
        priors: whether priors pull.
        blind: whether no parameter has an effect on what is missed.
    """
    if count > 1:
        told += f" ({count} targets are missed)"
    if at_bounds:
        return True, f"{message}; {told}, for {at_bounds[0]} is at its bound"
    if priors:
        return True, f"{message}; {told}, for priors are against it"
    if blind:
        return False, f"not converged: no parameter that varies has an effect on {worst}: {told}"
    return False, f"not converged: the cost is lowest here, but {told}; no parameters nearby meet all targets"
