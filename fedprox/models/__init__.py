"""The models of the experiments, by family."""
