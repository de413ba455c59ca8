"""The network of ReLU layers against autograd, and its skip form against the identity."""

import pytest
import torch

from hpcopt.models.relu_student import ReluStudent, ReluStudentConfig


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("hidden", [(3,), (5, 4, 3)])
def test_held_activations_make_the_output_linear_in_each_layer(hidden, skip):
    torch.manual_seed(0)
    model = ReluStudent(6, hidden, skip).double()
    with torch.no_grad():
        for w in model.layers:
            w.add_(0.3 * torch.randn_like(w))
    x = torch.randn(20, 6, dtype=torch.float64)
    y = model(x)
    for layer, total in enumerate(model.totals()):
        c, h = model.held(layer, x)
        torch.testing.assert_close(((h @ total.T) * c).sum(1), y, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(y.sum(), model.layers[layer], retain_graph=True)
        torch.testing.assert_close(c.T @ h, gradient, rtol=0, atol=1e-12)


def test_the_skip_form_begins_at_the_identity():
    x = torch.randn(9, 4)
    assert torch.equal(ReluStudent(4, (3, 2), skip=True)(x), x[:, :2].relu().sum(1))


def test_a_unit_without_a_coordinate_is_refused():
    with pytest.raises(ValueError, match="at most 4 units"):
        ReluStudentConfig(hidden=(5,), skip=True).build(4)


def test_rows_have_length_one_on_average():
    torch.manual_seed(0)
    (rows,) = ReluStudentConfig(hidden=(1000,)).build(30).layers
    assert float(rows.detach().square().sum(1).mean()) == pytest.approx(1, rel=0.05)
