"""What somebody would write beside a codec of their own."""

from hpcopt.testing.codec import check_codec
from tests.outsider.my_codec import EightBits


def test_it_keeps_the_contract_of_a_codec():
    check_codec(EightBits())
