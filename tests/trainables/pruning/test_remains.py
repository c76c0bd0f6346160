"""What is left of weights runs, and is masked, as the whole matrix with zeros for what is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefront.trainables.pruning.remains import Ranked, Remains


@pytest.fixture
def weights():
    numbers = np.random.Generator(np.random.Philox(key=1))
    weights = torch.from_numpy(numbers.random((7, 5), np.float32)).double()
    weights[0, 1] = weights[0, 3]  # equals, of which the first stays
    return weights


def kept(n_left):
    """For each output that many of its best, of equals the first: (outputs x inputs,) bool."""

    def of(weights):
        order = np.argsort(-weights.numpy(), axis=1, kind="stable")
        mask = np.zeros(weights.shape, np.bool_)
        for row, places, n in zip(mask, order, n_left, strict=True):
            row[places[:n]] = True
        return mask.reshape(-1)

    return of


def masked(weights, mask):
    return weights * torch.from_numpy(mask).view_as(weights)


@pytest.mark.parametrize("n_left", [[5] * 7, [4, 0, 1, 5, 3, 0, 2], [0] * 7])
def test_a_layer_runs_through_what_is_left_of_it(weights, n_left):
    mask = kept(n_left)(weights)
    dense, remains = masked(weights, mask), Remains.of(weights, mask)
    given = torch.arange(1.0, 6.0, dtype=torch.float64)[None].requires_grad_()
    flow = torch.arange(7.0, dtype=torch.float64)
    for left in (remains, remains.part(np.ones(len(remains), np.bool_))):
        assert len(left) == sum(n_left)
        assert left.mask().tolist() == mask.tolist()
        outputs = left.outputs(given)
        # Sums of five terms in any order, each rounded once.
        torch.testing.assert_close(outputs, given @ dense.T, rtol=1e-15, atol=0)
        (gradient,) = torch.autograd.grad((outputs * flow).sum(), given)
        torch.testing.assert_close(gradient, flow[None] @ dense, rtol=2e-15, atol=0)
    fewer = kept([n // 2 for n in n_left])(weights)
    assert remains.part(fewer[mask]).mask().tolist() == fewer.tolist()
    assert remains.mask().tolist() == mask.tolist()


@pytest.mark.parametrize("n_left", [[5] * 7, [4, 0, 1, 5, 3, 0, 2], [1] * 7])
def test_the_best_of_each_output_are_told_by_their_number(weights, n_left):
    mask = kept([min(n + 1, 5) for n in n_left])(weights)
    ranked = Ranked.of(masked(weights, mask), mask)
    assert ranked.mask().tolist() == mask.tolist()
    ranked, mask = ranked.part(np.array(n_left)), kept(n_left)(weights)
    assert len(ranked) == sum(n_left)
    assert ranked.mask().tolist() == mask.tolist()
    outputs = ranked.outputs(torch.ones(1, 5, dtype=torch.float64))
    torch.testing.assert_close(outputs.detach(), masked(weights, mask).sum(dim=1)[None], rtol=1e-15, atol=0)
