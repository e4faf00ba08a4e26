"""Forces and Hessians of a structure with a potential, and what is known of its motions."""
