"""Potentials of triplets: Stillinger-Weber, Tersoff."""
