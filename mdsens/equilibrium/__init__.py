"""Equilibria, states without forces: minima, saddle points, constraints, chains of images."""
