"""What a study's TOML file says: its schema, recipes of its parts, its pieces of work."""
