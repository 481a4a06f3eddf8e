"""Measured workloads: how fast the project is, against its goals, its own definition, its peers and the machine."""
