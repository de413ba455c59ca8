"""What every ``[exchange]`` section is."""

from hpcopt.config import Choice


class ExchangeConfig(Choice):
    """How gradients, or parameters, travel between ranks."""
