"""The local problem of one client: min F_k(w) + (mu / 2) * ||w - w^t||^2."""
