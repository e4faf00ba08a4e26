"""Energies of other programs as potentials: ASE's calculators, functions of jax-md."""
