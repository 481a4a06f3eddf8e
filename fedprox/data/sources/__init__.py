"""Where examples come from: downloads, generators, files."""
