"""mdsens/studies/input"""
