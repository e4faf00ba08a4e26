"""mdsens/files"""
