"""A model's gradients, exchanged between ranks."""
