"""mdsens/common"""
