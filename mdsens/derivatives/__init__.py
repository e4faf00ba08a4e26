"""mdsens/derivatives"""
