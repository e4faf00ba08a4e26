"""For those who write potentials: what every potential must do, `check_potential(potential, system)`, and examples."""

from mdsens.testing.contract import ContractError, Report, check_potential
from mdsens.testing.examples import EXAMPLES

__all__ = ["EXAMPLES", "ContractError", "Report", "check_potential"]


def __dir__() -> list[str]:
    return sorted(__all__)
