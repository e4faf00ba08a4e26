"""mdsens/potentials/metals"""
