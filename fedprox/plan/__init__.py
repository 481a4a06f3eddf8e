"""Everything random in a round, fixed beforehand."""
