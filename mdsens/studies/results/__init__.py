"""Results of studies: numbers by path, tables, and objects that print them."""
