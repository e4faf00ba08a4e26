"""One relaxation by everybody: silicon with a vacancy, shaken, to the same largest force.

    python scripts/bench/relaxation.py [--cells 4] [--fmax 1e-8] [--shaken 0.05] [--without jax-md ASE]

Needs the wheels of the test extra. mdsens, jax-md and ASE with mdsens's forces use the cores that JAX finds, LAMMPS and matscipy
one. Times are those of a second call, after one that compiles; ASE's optimisers call a calculator, mdsens's own (`Calculator`)
and matscipy's analytic one. All start from the same positions, and the energies say whether they end in the same minimum.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from ase.optimize import FIRE, LBFGS
from matscipy.calculators.manybody import Manybody, StillingerWeber
from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

import mdsens as ms

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import lammps_reference

STEPS = 5000
CHUNK = 50
SW_LINE = "Si Si Si 2.1683 2.0951 1.80 21.0 1.20 -0.333333333333333333 7.049556277 0.6022245584 4.0 0.0 0.0\n"


def by_mdsens(atoms, fmax, **options):
    eq = ms.relax(ms.System.from_ase(atoms), ms.StillingerWeber.silicon(), fmax=fmax, **options)
    return eq.system.positions, f"{eq.steps} steps"


def by_ase(atoms, fmax, optimiser, calculator):
    atoms = atoms.copy()
    atoms.calc = calculator
    run = optimiser(atoms, logfile=None)
    run.run(fmax=fmax, steps=STEPS)
    return atoms.positions, f"{run.nsteps} steps"


def by_lammps(atoms, fmax, style, path):
    lmp, _ = lammps_reference._instance()
    lx, ly, lz = atoms.cell.lengths().tolist()
    n = len(atoms)
    for command in ("clear", "units metal", "atom_style atomic", "atom_modify map array", "boundary p p p"):
        lmp.command(command)
    for command in (f"region cell block 0 {lx!r} 0 {ly!r} 0 {lz!r}", "create_box 1 cell", "mass * 28.0"):
        lmp.command(command)
    lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, atoms.positions.ravel().tolist())
    for command in ("pair_style sw", f"pair_coeff * * {path} Si", "neighbor 1.0 bin", "thermo 100000"):
        lmp.command(command)
    lmp.command(f"min_style {style}")
    # Of all styles hftn alone knows no largest force; the norm over all atoms is never less.
    lmp.command(f"min_modify norm {'two' if style == 'hftn' else 'max'}")
    lmp.command(f"minimize 0 {fmax} {STEPS} {20 * STEPS}")
    return np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3), f"{int(lmp.get_thermo('step'))} steps"


class JaxMD:
    """FIRE on jax-md's own Stillinger-Weber energy; compiled once."""

    def __init__(self, atoms):
        from jax_md import energy, minimize, space

        box = jnp.asarray(atoms.cell.lengths())
        displacement, shift = space.periodic(box)
        neighbors, energy_of = energy.stillinger_weber_neighbor_list(displacement, box, epsilon=2.1683, dr_threshold=0.5)
        self.listed = neighbors.allocate(jnp.asarray(atoms.positions), extra_capacity=2)
        self.init, step = minimize.fire_descent(energy_of, shift)
        self.chunk = jax.jit(lambda state, list_: jax.lax.fori_loop(0, CHUNK, lambda _, s: step(s, neighbor=list_), state))

    def __call__(self, atoms, fmax):
        state, listed, steps = self.init(jnp.asarray(atoms.positions), neighbor=self.listed), self.listed, 0
        while steps < STEPS and not float(jnp.linalg.norm(state.force, axis=1).max()) < fmax:
            listed = listed.update(state.position)
            state, steps = self.chunk(state, listed), steps + CHUNK
        return state.position, f"{steps} steps"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4, help="cubic cells of 8 atoms along each edge (default: 4)")
    parser.add_argument("--fmax", type=float, default=1e-8, help="largest force [eV/Å] (default: 1e-8)")
    parser.add_argument("--shaken", type=float, default=0.05, help="standard deviation of the start [Å] (default: 0.05)")
    parser.add_argument("--without", nargs="*", default=(), help="leave out what begins so")
    options = parser.parse_args()
    atoms = bulk("Si", cubic=True) * options.cells
    del atoms[len(atoms) // 2]
    atoms.rattle(options.shaken, seed=1)
    system, potential, fmax = ms.System.from_ase(atoms), ms.StillingerWeber.silicon(), options.fmax
    ours = ms.Calculator(potential)
    theirs = Manybody(**StillingerWeber({**published, "costheta0": 1.0 / 3.0}))
    path = Path("bench.sw").absolute()
    jax_md = functools.cache(lambda: JaxMD(atoms))
    all_ways = {
        "mdsens": lambda: by_mdsens(atoms, fmax),
        "mdsens, without a look at curvatures": lambda: by_mdsens(atoms, fmax, check_minimum=False),
        "mdsens, FIRE first": lambda: by_mdsens(atoms, fmax, solver=ms.FIRE()),
        **{f"LAMMPS {style}": lambda style=style: by_lammps(atoms, fmax, style, path) for style in ("cg", "fire", "hftn")},
        "jax-md fire_descent": lambda: jax_md()(atoms, fmax),
        "ASE LBFGS, forces of mdsens": lambda: by_ase(atoms, fmax, LBFGS, ours),
        "ASE FIRE, forces of mdsens": lambda: by_ase(atoms, fmax, FIRE, ours),
        "ASE LBFGS, forces of matscipy": lambda: by_ase(atoms, fmax, LBFGS, theirs),
    }
    ways = {name: way for name, way in all_ways.items() if not name.startswith(tuple(options.without))}
    path.write_text(SW_LINE)
    print(f"{len(atoms)} atoms, shaken by {options.shaken:g} Å, to {fmax:g} eV/Å")
    print(f"{'':38}{'seconds':>9}{'× mdsens':>10}  {'':12}{'largest force':>14}{'energy above':>14}")
    first = lowest = None
    try:
        for name, way in ways.items():
            way()
            began = time.perf_counter()
            positions, told = way()
            positions = np.array(jax.block_until_ready(positions))
            seconds = time.perf_counter() - began
            there = system.with_positions(jnp.asarray(positions))
            left = float(np.linalg.norm(potential.forces(there), axis=1).max())
            energy = float(potential.energy(there))
            first, lowest = first or seconds, energy if lowest is None else lowest
            print(f"{name:38}{seconds:9.3f}{seconds / first:10.1f}  {told:12}{left:14.1e}{energy - lowest:14.1e}", flush=True)
    finally:
        path.unlink()


if __name__ == "__main__":
    main()
