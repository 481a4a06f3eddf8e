"""Metrics of a global model, on the server and on all clients."""
