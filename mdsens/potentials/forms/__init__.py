"""mdsens/potentials/forms"""
