"""Flower Grids, which compute the clients of a round."""
