"""On a card: payloads have the bytes of the CPU's, for every codec that works there and every size of the property
suite.
"""

import pytest
import torch

from hpcopt.testing.codec import label
from hpcopt.testing.values import gaussian
from tests.kernels.cuda.cases import ON_DEVICE, check_same_bytes, inputs, mixed

SIZES = [0, 1, 7, 511, 512, 513, 1_000_000]


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ON_DEVICE, ids=label)
def test_same_bytes(codec):
    card = torch.device("cuda", 0)
    for n in SIZES:
        for x in (*inputs(n).values(), mixed(n), (4 * gaussian(n)).round()):
            check_same_bytes(codec, x, card)
