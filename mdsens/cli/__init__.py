"""mdsens/cli"""
