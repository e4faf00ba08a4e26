"""mdsens/structures"""
