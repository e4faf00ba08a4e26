"""mdsens/equilibrium"""
