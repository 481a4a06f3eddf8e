"""Sources of examples: downloads, generators, files."""
