"""What studies found: numbers by path, tables, and the objects that print them."""
