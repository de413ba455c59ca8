"""The cell of an LSTM as torch runs it on a GPU, one kernel each way, in main memory, where torch has none."""

import torch
from torch import Tensor


def cell(
    inputs: Tensor, hidden: Tensor, state: Tensor, input_bias: Tensor, hidden_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates (n, 4 h) of the input and of the hidden units, and a state (n, h), to hidden units, state and gates."""
    i, f, g, o = (inputs + hidden + input_bias + hidden_bias).chunk(4, 1)
    gates = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    after = gates[1] * state + gates[0] * gates[2]
    return gates[3] * after.tanh(), after, torch.cat(gates, 1)


def cell_backward(
    of_hidden: Tensor | None, of_after: Tensor | None, state: Tensor, after: Tensor, gates: Tensor, _: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates before their functions, of the state, and of a bias."""
    i, f, g, o = gates.chunk(4, 1)
    zero = torch.zeros_like(after)
    of_hidden, of_after = (zero if of is None else of for of in (of_hidden, of_after))
    of_state = of_after + of_hidden * o * (1 - after.tanh() ** 2)
    found = torch.cat(
        [
            of_state * g * i * (1 - i),
            of_state * state * f * (1 - f),
            of_state * i * (1 - g**2),
            of_hidden * after.tanh() * o * (1 - o),
        ],
        1,
    )
    return found, of_state * f, found.sum(0)


ONE_KERNEL = {"_thnn_fused_lstm_cell": cell, "_thnn_fused_lstm_cell_backward_impl": cell_backward}
