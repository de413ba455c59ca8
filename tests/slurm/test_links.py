"""What a link of the development cluster lets through beyond its rate."""

import pytest

from slurm.devcluster.network import _burst


@pytest.mark.parametrize("rate", ["500kbit", "1mbit", "10mbit", "100mbit", "1gbit", "10gbit"])
def test_a_rested_link_sends_a_packet_or_a_few_milliseconds_of_its_rate(rate):
    """A round of local steps is 8 KB: what goes at once takes no time on the wire."""
    bits_per_s = float(rate[:-4]) * {"k": 1e3, "m": 1e6, "g": 1e9}[rate[-4]]
    burst = int(_burst(rate)[:-2]) * {"k": 1024, "m": 1024**2}[_burst(rate)[-2]]
    assert 1514 < burst < max(2200, 4e-3 * bits_per_s / 8)
