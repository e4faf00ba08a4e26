"""Where forces vanish: minima, saddle points, constraints, chains of images."""
