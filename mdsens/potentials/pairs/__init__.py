"""mdsens/potentials/pairs"""
