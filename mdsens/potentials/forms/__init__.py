"""What a potential can be a subclass of: pairs, sites, embedded atoms; and what they share."""
