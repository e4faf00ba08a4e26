"""Equilibria and derivatives in HDF5 files, written whole and with their provenance."""
