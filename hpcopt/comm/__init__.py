"""Collectives on flat tensors, and the transports under them."""
