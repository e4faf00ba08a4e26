"""mdsens/studies/running"""
