"""The command: the same bits on any number of ranks and after a stop, every kind of input, and every complaint."""

import json

import h5py
import numpy as np
import pytest
import torch

from hpcopt.analysis.explain import METHODS
from hpcopt.analysis.explain.command import explain
from hpcopt.analysis.explain.parts import Parts
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import EXIT_DONE, EXIT_REQUEUE, HpcoptError
from hpcopt.explain import main, parser

pytest.importorskip("captum")
pytest.importorskip("quantus")
QUICK = ["--samples=12", "--draws=2", "--steps=4", "--curves=4", "--scored=1", "--patch=4"]


def asked(name: str, *more: str):
    return parser().parse_args(
        [f"small_networks:{name}", "--weights", f"{name}.safetensors", "--inputs", f"{name}.npy", *QUICK, *more]
    )


def arrays(file) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda name, o: found.update({name: o[...]}) if isinstance(o, h5py.Dataset) else None)
    return found


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[k], other[k], equal_nan=one[k].dtype.kind == "f") for k in one
    )


DRAWN = "smooth,gradient_shap,lime,cle,kernel_shap"
SOME = f"--methods=integrated,grad_cam,{DRAWN}"


@pytest.fixture
def on_one_rank(networks):
    assert (
        explain(asked("Net", SOME, "--pictures=logit,prototypes", "--out=one.h5"), alone(), lambda: False) == EXIT_DONE
    )
    return arrays("one.h5")


def test_three_ranks_give_the_bits_of_one(on_one_rank):
    options = asked("Net", SOME, "--pictures=logit,prototypes", "--out=three.h5")
    codes = run_ranks(3, lambda transport: explain(options, World(transport), lambda: False))
    assert codes == [EXIT_DONE] * 3
    three = arrays("three.h5")
    assert same(on_one_rank, three)
    assert set(DRAWN.split(",")) == {name for name, method in METHODS.items() if method.sampled}
    assert three["inputs/row"].tolist() == list(range(7))
    assert three["methods/lime/attribution"].shape == (7, 1, 8, 8)
    assert three["methods/grad_cam/attribution"].shape == (7, 1, 8, 8)
    assert three["methods/lime/deletion"].shape == three["inputs/insertion"].shape == (4, 21)
    assert three["methods/lime/faithfulness"].shape == (1,)
    assert np.isfinite(three["methods/integrated/faithfulness"]).all()


def test_what_is_drawn_for_an_input_does_not_depend_on_the_others(on_one_rank):
    code = explain(asked("Net", f"--methods={DRAWN}", "--rows=1,5", "--out=few.h5"), alone(), lambda: False)
    few = arrays("few.h5")
    assert code == EXIT_DONE
    for name in DRAWN.split(","):
        attribution = f"methods/{name}/attribution"
        assert np.array_equal(few[attribution], on_one_rank[attribution][[1, 5]])


def test_what_was_stopped_goes_on_and_ends_with_the_same_bits(on_one_rank, capsys):
    """Told to leave before its tenth piece, and killed while it wrote another."""
    calls = iter(range(100))
    assert (
        explain(asked("Net", SOME, "--pictures=logit,prototypes", "--out=two.h5"), alone(), lambda: next(calls) == 9)
        == EXIT_REQUEUE
    )
    parts = Parts(asked("Net", SOME, "--pictures=logit,prototypes", "--out=two.h5").out)
    written = {path: path.stat().st_mtime_ns for path in parts.folder.glob("*.h5")}
    assert len(written) == 9
    (parts.folder / ".lime-00000.h5.tmp").write_bytes(b"half")
    assert (
        explain(asked("Net", SOME, "--pictures=logit,prototypes", "--out=two.h5"), alone(), lambda: False) == EXIT_DONE
    )
    assert same(on_one_rank, arrays("two.h5"))
    assert not parts.folder.exists()
    assert (
        explain(asked("Net", SOME, "--pictures=logit,prototypes", "--out=two.h5"), alone(), lambda: True) == EXIT_DONE
    )
    assert "is there already" in capsys.readouterr().out


def test_pieces_that_are_there_are_not_made_again(networks):
    calls = iter(range(100))
    options = asked("Columns", "--methods=integrated,saliency", "--out=c.h5")
    assert explain(options, alone(), lambda: next(calls) == 2) == EXIT_REQUEUE
    parts = Parts(options.out)
    with h5py.File(parts.folder / "saliency-00000.h5", "r+") as piece:
        piece["attribution"][...] = 5.0
    assert explain(options, alone(), lambda: False) == EXIT_DONE
    assert (arrays("c.h5")["methods/saliency/attribution"] == 5).all()


def test_tokens_are_explained_by_token(networks):
    """captum's integrated gradients of a layer are the oracle."""
    import small_networks
    from captum.attr import LayerIntegratedGradients

    options = asked("Words", "--methods=integrated,lime,occlusion", "--steps=8", "--out=w.h5")
    assert explain(options, alone(), lambda: False) == EXIT_DONE
    found = arrays("w.h5")
    assert found["methods/lime/attribution"].shape == (3, 6)
    from hpcopt.analysis.explain.sources import load

    network = small_networks.Words().eval()
    load(network, options.weights)
    tokens = torch.from_numpy(np.load("Words.npy"))
    target = torch.from_numpy(found["inputs/target"])
    assert torch.equal(network(tokens)[:, -1].argmax(1), target)
    oracle = LayerIntegratedGradients(lambda t: network(t)[:, -1], network.embedding)
    wanted = oracle.attribute(tokens, torch.zeros_like(tokens), target=target, n_steps=8).sum(2).detach()
    assert np.allclose(found["methods/integrated/attribution"], wanted, atol=1e-5)


def test_columns_are_explained_by_column(networks):
    assert explain(asked("Columns", "--target=1", "--out=c.h5"), alone(), lambda: False) == EXIT_DONE
    found = arrays("c.h5")
    assert found["methods/kernel_shap/attribution"].shape == (3, 5)
    assert found["inputs/target"].tolist() == [1, 1, 1]
    assert not any("cam" in name or "guided" in name for name in found)
    with h5py.File("c.h5") as file:
        assert json.loads(file.attrs["asked"])["seed"] == file.attrs["seed"] == 0


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("Net", ["--layer=convolution", "--methods=grad_cam"], 'no layer "convolution"; it has conv, head'),
        ("Net", ["--layer=head", "--methods=grad_cam"], "a layer that gives maps"),
        ("Net", ["--target=4"], "classes 0 to 3"),
        ("Net", ["--target=-1"], "classes 0 to 3"),
        ("Net", ["--target=label"], "have no classes of their own"),
        ("Net", ["--target=best"], "say predicted, label"),
        ("Net", ["--rows=5:9"], "rows 0 to 6"),
        ("Net", ["--rows=last"], 'say "0:100"'),
        ("Net", ["--methods=grad_cam,gradcam"], 'no method "gradcam"'),
        ("Net", ["--samples=1"], "--samples 1"),
        ("Net", ["--inputs=Columns.npy"], "neither|does not take"),
        ("Net", ["--inputs=none.npy"], "cannot read inputs from none.npy"),
        ("Net", ["--weights=Columns.safetensors"], "holds another network"),
        ("Net", ["--weights=Net.npy"], "should be safetensors"),
        ("Columns", ["--methods=score_cam"], "maps are of images"),
        ("Words", ["--baseline=11"], "tokens 0 to 10"),
    ],
)
def test_what_is_wrong_is_one_message_on_every_rank(name, more, says, networks):
    options = asked(name, "--out=bad.h5", *more)
    told = []

    def on_rank(transport) -> None:
        with pytest.raises(HpcoptError, match=says) as found:
            explain(options, World(transport), lambda: False)
        assert found.value.exit_code == 2
        told.append(found.value.on_every_rank)

    run_ranks(2, on_rank)
    assert told == [True, True]


def test_other_explanations_are_not_replaced_unasked(networks):
    options = asked("Columns", "--methods=saliency", "--out=c.h5")
    assert explain(options, alone(), lambda: False) == EXIT_DONE
    other = asked("Columns", "--methods=saliency", "--out=c.h5", "--seed=1")
    with pytest.raises(HpcoptError, match=r"\(seed differ\)"):
        explain(other, alone(), lambda: False)
    other.fresh = True
    assert explain(other, alone(), lambda: False) == EXIT_DONE
    with h5py.File("c.h5") as file:
        assert file.attrs["seed"] == 1


def test_the_command_line_says_what_is_wrong(networks, capsys):
    assert main(["small_networks:Net"]) == 2
    assert "takes --weights FILE.safetensors and --inputs" in capsys.readouterr().err
    assert main(["no_run"]) == 2
    assert "no_run is not a run directory" in capsys.readouterr().err
