"""Lists of neighbours: how they are found, kept, and summed over."""
