"""What K-FAC must know of each kind of layer: its parameters as a matrix, and which rows make up its two factors."""
