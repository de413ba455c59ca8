"""A network that knows nothing of hpcopt."""

from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a linear layer, for images of 8x8 pixels."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * channels, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, (n, classes), for images, (n, 1, 8, 8)."""
        logits: Tensor = self.layers(images)
        return logits
