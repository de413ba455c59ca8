"""Solvers for networks of ReLU layers that learn of a teacher: closed forms where others take small steps."""
