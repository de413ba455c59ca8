"""A network over ranks, trained by gradients: all the way back, or a part of it."""
