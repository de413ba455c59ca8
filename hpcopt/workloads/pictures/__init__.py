"""Pictures of any size, drawn by the seed, whose values are known."""
