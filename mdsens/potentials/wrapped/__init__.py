"""mdsens/potentials/wrapped"""
