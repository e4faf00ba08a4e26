"""mdsens/studies/storage"""
