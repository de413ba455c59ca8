"""What classes that come in from outside must keep, as plain assertions: our own suite runs the same ones."""
