"""mdsens/studies/results"""
