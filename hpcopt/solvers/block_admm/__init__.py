"""Stochastic Block-ADMM: a network cut into blocks and trained without back-propagation through the cuts."""
