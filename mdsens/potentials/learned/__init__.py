"""mdsens/potentials/learned"""
