"""Simulated annealing and parallel tempering: chains of random moves, dealt over the ranks."""
