"""Ranks that are pulled to the best of them."""
