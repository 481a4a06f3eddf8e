"""Flower Grids: where the clients of a round are computed."""
