"""Run directories -> one tidy table -> figures and tables."""
