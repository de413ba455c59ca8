"""Which exchanges leave sums."""

from hpcopt.errors import JobError
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.vote import VoteConfig


def require_sums(exchange: ExchangeConfig, solver: str) -> Overlap:
    """Give an exchange that leaves the sum of the ranks' gradients, or something close to it.

    Raises:
        JobError: on all ranks: this one leaves something else.
    """
    if isinstance(exchange, VoteConfig) or not isinstance(exchange, Overlap):
        raise JobError(
            f'[solver] name = "{solver}" needs summed gradients, which [exchange] name = "{exchange.name}" does not '
            'give: use "ring", "two_phase" or "native"'
        ).everywhere()
    return exchange
