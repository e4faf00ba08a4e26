"""The status with which a solve ended, in the words that the user reads."""

import enum


class Status(enum.Enum):
    """How a solve ended. The value of a member is its message, with the remedy."""

    CONVERGED = "converged"
    MAX_STEPS = (
        "not converged within the allowed number of steps: raise max_steps, loosen the tolerance, or start from a better place"
    )
    NOT_FINITE = (
        "the residual became NaN or infinite: the parameters make no sense, or the steps or the start are too rough (atoms "
        "too close); start from a better place or use a smaller max_step"
    )
    STALLED = (
        "the residual stopped decreasing above the tolerance: ask for a looser one (residuals have a rounding noise), or "
        "check that the problem is smooth where the unknown is"
    )
    STALE_NEIGHBORS = (
        "an atom moved farther than the neighbour list allows inside a compiled solve: start nearer to the equilibrium "
        "(relax first), or attach a list with a larger skin, system.with_neighbors(potential, skin=...)"
    )
    COINCIDING = "two atoms are at the same place: remove one of them or move them apart, and check the potential's repulsion"
    SADDLE = (
        "the gradient vanishes, but a curvature is negative: this is a saddle point, not a minimum; displace the start a "
        "little (atoms.rattle(0.01)) and solve again"
    )
    UNSTABLE_CELL = (
        "the cell collapsed or flew apart: the structure is not stable at this pressure, or the start is too far from its "
        "equilibrium; change the pressure, or relax at a fixed cell first"
    )
    CONTRADICTION = (
        "the constraints cannot be met together: they contradict each other, or the start is too far from where they hold"
    )
    WRONG_INDEX = (
        "the gradient vanishes, but not with exactly one negative curvature: this is no first-order saddle point; start "
        "nearer to it, or give the direction of the path"
    )
    RAN_AWAY = (
        "the unknown grew until its change was lost in its own rounding: there may be no fixed point near the start; look at "
        "the map, or start nearer"
    )

    @property
    def code(self) -> int:
        """A number for arrays and files; 0 is converged."""
        return list(Status).index(self)

    @classmethod
    def from_code(cls, code: int) -> "Status":
        """Return the status of a code."""
        return list(cls)[int(code)]
