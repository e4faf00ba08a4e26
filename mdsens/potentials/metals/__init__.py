"""Potentials of embedded atoms: one formula a file, and LAMMPS's tables."""
