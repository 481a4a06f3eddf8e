"""Experiment trackers that receive every round in addition to the run directory."""
