"""Tools that are told of every round beside the run directory."""
