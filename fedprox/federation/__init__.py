"""A round of federated learning: messages, clients, replies. Start reading in rounds.py."""
