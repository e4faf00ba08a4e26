"""The contract of every potential, `check_potential(potential, system)`, and examples, for those who write potentials."""

from mdsens.testing.contract import ContractError, Report, check_potential
from mdsens.testing.examples import EXAMPLES

__all__ = ["EXAMPLES", "ContractError", "Report", "check_potential"]


def __dir__() -> list[str]:
    return sorted(__all__)
