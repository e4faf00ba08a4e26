"""Lists of neighbours: the search for them, the lists, and sums over them."""
