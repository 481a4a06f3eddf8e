"""The configuration: its schema, its checks, its composition, and the objects that it names."""
