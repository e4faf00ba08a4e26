"""Potentials of pairs: one formula a file."""
