"""What somebody would write beside a solver of their own."""

from hpcopt.testing.solver import check_solver
from tests.outsider.my_solver import NormalisedConfig


def test_it_keeps_the_contract_of_a_solver():
    check_solver(NormalisedConfig())
