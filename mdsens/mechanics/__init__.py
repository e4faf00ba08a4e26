"""mdsens/mechanics"""
