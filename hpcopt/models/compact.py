"""Embeddings of codes once training is over: packed integers and small tables, in a network or in its state."""

from collections.abc import Mapping

from torch import Tensor, nn

from hpcopt.models.code_table import CodeTable, pack
from hpcopt.models.coded_embedding import CodedEmbedding, codes_of
from hpcopt.models.product_codes import ProductCodes, nearest

SIZE, TABLES, EXACT, FIRST = "size", "composer.tables", "exact", "first"
CODED = ("logits", "own")  # of which a code is made
OF_TRAINING = (*CODED, "guide", EXACT)


def compact(model: nn.Module) -> nn.Module:
    """Put a ``CodeTable`` in the place of each embedding of codes of a network; give the network, which is changed."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CodedEmbedding | ProductCodes):
            table = CodeTable.of_state(compact_state(layer.state_dict()))
            if not name:
                return table
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, table)
    return model


def compact_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of ``compact(model)``, from that of the model: codes are packed where there are ``logits`` or
    words' ``own`` vectors beside ``composer.tables``; of exact words the vectors are left.

    Raises:
        ValueError: there are no codes.
    """
    names = [key.removesuffix(TABLES) for key in state if key == TABLES or key.endswith(f".{TABLES}")]
    coded = [name for name in names if f"{name}{SIZE}" in state and any(f"{name}{part}" in state for part in CODED)]
    if not coded:
        raise ValueError("no embedding of the network has codes")
    left_out = {f"{name}{part}" for name in coded for part in OF_TRAINING}
    found = {key: tensor for key, tensor in state.items() if key not in left_out}
    for name in coded:
        ways = int(state[f"{name}{SIZE}"][2])
        exact = int(state.get(f"{name}{EXACT}", 0))
        found[f"{name}packed"] = pack(_codes(state, name, exact), ways)
        if exact:
            found[f"{name}{FIRST}"] = state[f"{name}own"][:exact].clone()
    return found


def _codes(state: Mapping[str, Tensor], name: str, exact: int) -> Tensor:
    own = state.get(f"{name}own")
    return codes_of(state[f"{name}logits"]) if own is None else nearest(own[exact:], state[f"{name}{TABLES}"])
