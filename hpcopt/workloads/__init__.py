"""What is trained: a model, its data, its loss and its score."""
