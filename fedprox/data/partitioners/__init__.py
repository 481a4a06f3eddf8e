"""How examples are divided among clients.

Each scheme returns one array of example positions per client. No example goes to two clients and every client gets at
least one; `fedprox.data.federated.divide` turns the result into federated data with held-out parts.
"""
