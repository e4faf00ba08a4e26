"""mdsens/potentials/manybody"""
