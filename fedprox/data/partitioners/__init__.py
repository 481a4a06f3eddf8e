"""Partitions: functions that divide examples among clients.

Each returns an array of example positions for every client. No example goes to two clients and every client gets at
least one; `fedprox.data.federated.divide` turns the result into federated data with held-out parts.
"""
