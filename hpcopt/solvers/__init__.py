"""How a batch becomes new parameters across the ranks."""
