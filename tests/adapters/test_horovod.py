"""The compressor for Horovod: gradients of its optimizer are ours by the same codec, and other codecs are refused."""

import pytest
import torch
from torch import nn

from hpcopt.adapters import HorovodCompressor
from hpcopt.compress import QSGD, Half, RandomK, Sign
from hpcopt.errors import UnsupportedError


@pytest.mark.parametrize("codec", [QSGD(), Sign(), Half()], ids=lambda codec: codec.name)
def test_payloads_that_cannot_be_added_are_refused(codec):
    with pytest.raises(UnsupportedError, match=codec.name):
        HorovodCompressor(codec, [])


def test_random_choices_need_a_name():
    with pytest.raises(UnsupportedError, match="named_parameters"):
        HorovodCompressor(RandomK(), []).compress(torch.ones(3))


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("codec", [Half(format="fp16"), RandomK(fraction=0.5)], ids=lambda codec: codec.name)
def test_horovod_averages_what_the_codec_makes(codec):
    hvd = pytest.importorskip("horovod.torch")
    hvd.init()
    model = nn.Linear(6, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    compressor = HorovodCompressor(codec, model.named_parameters())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), compression=compressor
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.full((1, 6), float(hvd.rank()))).sum().backward()
        optimizer.synchronize()
        mean = (hvd.size() - 1) / 2
        gradient = model.weight.grad
        if isinstance(codec, Half):
            assert torch.equal(gradient, torch.full((4, 6), mean))
        else:
            assert ((gradient == 0) | (gradient == 2 * mean)).all() and (gradient != 0).sum() in (0, 12)
            assert hvd.allgather(gradient.unsqueeze(0)).unique(dim=0).shape[0] == 1
        with optimizer.skip_synchronize():
            optimizer.step()
