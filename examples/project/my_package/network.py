"""The network: any torch module. What it is made with stands in the job file."""

from torch import Tensor, nn


class Net(nn.Module):
    """Layers of one width with rectifiers between them.

    Args:
        inputs: numbers in a sample.
        width: units of each hidden layer.
        depth: how many hidden layers there are.
        classes: how many classes it tells apart.
    """

    def __init__(self, inputs: int = 2, width: int = 64, depth: int = 2, classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits, shape (batch, classes), of samples, shape (batch, inputs)."""
        logits: Tensor = self.layers(x)
        return logits
