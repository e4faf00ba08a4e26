"""Error bars of silicon's properties by J Σ Jᵀ against structures relaxed again with parameters drawn at random.

    python scripts/bench/uncertainty_sampling.py [--samples 2000] [--vacancy CELLS]

Stillinger-Weber with independent errors of its parameters; the lattice constant, C44 (with relaxed ions) and the
bulk modulus of the crystal, and with --vacancy the formation energy in a box of CELLS³ cubic cells that follows the crystal,
and in one that stays as it is: whatever strains that one costs energy, so that it bends, and the verdict should say so. Samples
are relaxed from the equilibrium, not from scratch, which is several times faster. Both are timed after a first round, in which
everything is compiled. Exits 1 where a trusted error bar is more than three sampling errors off, or less than 100 times
faster than the samples.
"""

import argparse
import sys

import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens import studies

SIGMAS, FASTER = 3.0, 100.0
STD = {"epsilon": 0.02, "sigma": 0.005, "lam": 0.4, "gamma": 0.01, "A": 0.05, "B": 0.004}
"""Standard deviations; about 1 % of each parameter, less of the lengths."""


def lattice_constant(system, potential):
    return (8.0 / len(system) * system.volume) ** (1.0 / 3.0)


def c44(system, potential):
    return ms.observables.elastic_constants(system, potential)[3, 3]


def bulk_modulus(system, potential):
    return ms.observables.bulk_modulus(system, potential)


def compared(states, observables, samples) -> bool:
    """Print both for each observable; whether they agree where they should, and how much faster one is."""
    studies.uncertainty(states, observables, STD, samples=3)
    found = studies.uncertainty(states, observables, STD, samples=samples)
    drawn, fine = found.sampling, True
    for name, std in found.std.items():
        off = (float(std) - float(drawn.std[name])) / float(drawn.std_error[name])
        fine &= abs(off) <= SIGMAS or not found.trusted
        print(
            f"  {name:18}{float(found.values[name]):12.6g}{float(std):12.4g}{float(drawn.std[name]):12.4g} ± "
            f"{float(drawn.std_error[name]):8.1e}{off:8.1f}{found.nonlinearity[name]:10.1%}"
        )
    ratio = drawn.seconds / found.seconds
    print(
        f"  {'trusted' if found.trusted else 'not trusted: ' + '; '.join(found.reasons)}; {found.seconds:.3f} s against "
        f"{drawn.seconds:.1f} s of {drawn.count} samples ({drawn.failed} failed): {ratio:.0f} times faster"
    )
    return fine and ratio >= FASTER


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--vacancy", type=int, metavar="CELLS", help="a vacancy's formation energy, too")
    options = parser.parse_args()
    potential = ms.StillingerWeber.silicon()
    crystal = ms.relax(ms.System.from_ase(bulk("Si")), potential, cell="free", fmax=1e-10)
    print(f"{'silicon':20}{'value':>12}{'J Σ Jᵀ':>12}{'sampled':>12}   {'':8}{'off by':>8}{'bent by':>10}")
    fine = compared(crystal, {"lattice constant": lattice_constant, "C44": c44, "bulk modulus": bulk_modulus}, options.samples)
    if options.vacancy:
        atoms = bulk("Si", a=float(lattice_constant(crystal.system, potential)), cubic=True) * options.vacancy
        arms = atoms.get_distances(0, range(len(atoms)), mic=True, vector=True)
        near = np.argsort(np.linalg.norm(arms, axis=1))[1:5]
        atoms.positions[near] -= 0.1 * arms[near]
        del atoms[0]
        formation = studies.Of(ms.observables.defect_formation_energy, {"defect": "defect", "bulk": "bulk"})
        for name, cell in (("vacancy", "isotropic"), ("in a fixed box", "fixed")):
            defect = ms.relax(ms.System.from_ase(atoms), potential, cell=cell, fmax=1e-10)
            fine &= compared({"defect": defect, "bulk": crystal}, {name: formation}, options.samples)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
