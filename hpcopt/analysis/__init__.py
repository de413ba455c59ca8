"""What can be said of a trained model: explanations of what it does, and how far it can be trusted."""
