"""Server steps: from the clients' updates to the next global model."""
