"""mdsens/structures/neighbors"""
