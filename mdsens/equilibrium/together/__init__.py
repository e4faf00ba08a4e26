"""Relaxation of many structures at once: each goes its own way, and what is asked on the ways is computed together."""
