"""FedProx (Li et al., MLSys 2020) on Flower: federated optimisation in heterogeneous networks."""
