"""The same round on a Flower federation: certificates and kits, a federation here, jobs, ServerApp and ClientApp."""
