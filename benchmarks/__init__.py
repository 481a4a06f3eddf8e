"""Benchmarks: speed and memory against goals, the reference solver, other libraries and the machine's limit."""
