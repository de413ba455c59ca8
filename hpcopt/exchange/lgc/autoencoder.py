"""The convolutional autoencoder of LGC (arXiv:2103.08870, section 4): n values become about n / 4, four channels that
are sixteen times shorter.

Five convolutions over three neighbours, four of them with stride 2, leaky ReLUs between them; the decoder is their
mirror. A decoder may be told some values themselves (innovation): they enter its last convolution as a second channel.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.errors import CheckpointError
from hpcopt.seeds import EVERY_RANK, derive

SHRINK = 16  # in length
CHANNELS = 4  # of a code
WIDTH = 32  # channels between
LEARNING_RATE = 2e-3


def code_numel(n: int) -> int:
    """Numbers in the code of n values."""
    return CHANNELS * -(-n // SHRINK)


class Autoencoder(nn.Module):
    """One encoder and some decoders, the same bits on all ranks as long as these call it with the same values.

    Vectors have the shape (n,) or (ranks, n); codes (code_numel(n),) or (ranks, code_numel(n)).
    """

    def __init__(self, decoders: int, seed: int) -> None:
        """All that is drawn comes from the seed, the same on all ranks."""
        super().__init__()
        self.encoder = nn.ModuleList(_conv(1 if layer == 0 else WIDTH, WIDTH, stride=2) for layer in range(4))
        self.encoder.append(_conv(WIDTH, CHANNELS))
        self._layers = [_decoder() for _ in range(decoders)]
        self.decoders = nn.ModuleList(self._layers)
        generator = torch.Generator().manual_seed(derive(seed, 0, EVERY_RANK, "autoencoder"))
        for p in self.encoder.parameters():
            _draw(p, generator)
        for decoder in self._layers:  # they begin alike
            drawn = torch.Generator().manual_seed(derive(seed, 0, EVERY_RANK, "decoder"))
            for p in decoder.parameters():
                _draw(p, drawn)
        self.optimizer = torch.optim.Adam(self.parameters(), LEARNING_RATE)

    def encode(self, x: Tensor) -> Tensor:
        """The code of each vector."""
        n = x.shape[-1]
        h = F.pad(x.reshape(-1, 1, n), (0, -n % SHRINK))
        for layer in list(self.encoder)[:-1]:
            h = F.leaky_relu(layer(h), 0.1)
        code: Tensor = self.encoder[-1](h)
        return code.reshape(*x.shape[:-1], -1)

    def decode(self, code: Tensor, n: int, decoder: int = 0, known: Tensor | None = None) -> Tensor:
        """The n values of each code.

        Args:
            decoder: which.
            known: shaped as the result: values that are known, zeros elsewhere; they come out as they are.
        """
        layers = list(self._layers[decoder])
        h = code.reshape(-1, CHANNELS, code.shape[-1] // CHANNELS)
        for layer in layers[:-1]:
            h = F.leaky_relu(layer(h), 0.1)
        told = h.new_zeros(h.shape[0], 1, h.shape[-1])
        if known is not None:
            told[..., :n] = known.reshape(-1, 1, n)
        x: Tensor = layers[-1](torch.cat([h, told], 1))[..., :n].reshape(*code.shape[:-1], n)
        return x if known is None else torch.where(known != 0, known, x)

    def learn(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Weights and Adam's moments by name, for a checkpoint."""
        state = {name: p.detach() for name, p in self.named_parameters()}
        for name, p in self.named_parameters():
            state |= {f"adam/{key}/{name}": value for key, value in self.optimizer.state.get(p, {}).items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over ``tensors``. Of another number of decoders those that there are; new ones begin as the first.

        Raises:
            CheckpointError: they are of another autoencoder.
        """
        for name, p in self.named_parameters():
            source = name if name in state else _of_first(name)
            with torch.no_grad():
                p.copy_(_like(state, source, p))
            if f"adam/step/{source}" in state:
                self.optimizer.state[p] = {
                    "step": state[f"adam/step/{source}"].clone(),
                    "exp_avg": _like(state, f"adam/exp_avg/{source}", p),
                    "exp_avg_sq": _like(state, f"adam/exp_avg_sq/{source}", p),
                }


def _decoder() -> nn.ModuleList:
    first = _conv(CHANNELS, WIDTH)
    rising = [_bare(nn.ConvTranspose1d, WIDTH, WIDTH, stride=2, output_padding=1) for _ in range(4)]
    return nn.ModuleList([first, *rising, _conv(WIDTH + 1, 1)])


def _conv(channels: int, out: int, stride: int = 1) -> nn.Module:
    return _bare(nn.Conv1d, channels, out, stride=stride)


def _bare(kind: type[nn.Module], channels: int, out: int, **settings: int) -> nn.Module:
    """A layer without weights: torch would draw them from a generator that all threads share."""
    layer: nn.Module = nn.utils.skip_init(kind, channels, out, 3, padding=1, **settings)  # type: ignore[no-untyped-call]
    return layer


def _draw(p: Tensor, generator: torch.Generator) -> None:
    if p.dim() == 1:
        nn.init.zeros_(p)
    else:
        nn.init.kaiming_uniform_(p, a=0.1, generator=generator)


def _of_first(name: str) -> str:
    room, _, rest = name.partition(".")
    return f"{room}.0.{rest.partition('.')[2]}" if room == "decoders" else name


def _like(state: Mapping[str, Tensor], name: str, p: Tensor) -> Tensor:
    held = state.get(name)
    if held is None or held.shape != p.shape:
        raise CheckpointError(f"the checkpoint's autoencoder is another one: its {name} is not {tuple(p.shape)}")
    return held.clone()
