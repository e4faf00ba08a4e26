"""Embedded atoms: one form a file, and LAMMPS's tables."""
