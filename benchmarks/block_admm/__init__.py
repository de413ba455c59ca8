"""Block-ADMM beside its peers."""
