"""How far a trained classifier can be trusted: conservative bounds on its probability of failure per demand."""
