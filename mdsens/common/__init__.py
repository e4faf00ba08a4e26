"""What all rooms use: errors, units, texts, progress, compiled code."""
