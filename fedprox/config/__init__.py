"""The configuration: its schema, its checks, how it is composed, and how objects are made of it."""
