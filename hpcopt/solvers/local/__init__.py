"""Ranks that take many steps of their own between two exchanges."""
