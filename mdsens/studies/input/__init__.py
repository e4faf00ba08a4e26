"""The TOML file of a study: its schema, recipes of its parts, its tasks."""
