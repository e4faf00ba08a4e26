"""mdsens/studies/methods"""
