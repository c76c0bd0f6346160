"""Detection of what is no data: exact ranks, and inputs of the right kind."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sparsefront.trainables.gradients import forward
from sparsefront.trainables.quality import measure
from sparsefront.trainables.quality.ood import auroc, noise, shuffled
from sparsefront.trainables.quality.subject import Inputs

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_order(positive, negative):
    area = auroc(torch.tensor([positive]).double(), torch.tensor([negative]).double()).item()
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert area == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    labels = [1] * len(positive) + [0] * len(negative)
    assert area == pytest.approx(roc_auc_score(labels, positive + negative))
    back = auroc(torch.tensor([negative]).double(), torch.tensor([positive]).double()).item()
    assert area + back == pytest.approx(1)


def test_auroc_of_what_is_not_finite_is_unknown():
    scores = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
    area = auroc(scores, torch.zeros(2, 3))
    assert area.isnan().tolist() == [True, False]
    assert area[1] == 1


def test_inputs_are_the_same_numbers_shuffled_and_noise_of_their_size(examples):
    inputs = Inputs(examples[0], seed=3)
    mixed = shuffled(inputs)
    assert torch.equal(mixed.sort(dim=1).values, inputs.x.sort(dim=1).values)
    assert (mixed != inputs.x).any(dim=1).all()
    drawn = noise(inputs)
    assert drawn.shape == inputs.x.shape
    # 3,600 draws: four standard errors.
    assert drawn.mean().item() == pytest.approx(inputs.mean, abs=4 * inputs.std / 60)
    assert drawn.std().item() == pytest.approx(inputs.std, rel=4 / (2 * 3600) ** 0.5)


@pytest.mark.parametrize("family", ["mlp", "hourglass"])
def test_columns_are_those_of_scikit_learn_on_the_softmax(family, trained, examples):
    model, _, _, lanes = trained(family)
    columns = measure(["ood"], model, lanes, examples[1], parent=None, seed=3)
    inputs = Inputs(examples[1], seed=3)

    def confidence(x):
        return forward(model, lanes.layout, lanes.flat, x).double().softmax(dim=2).amax(dim=2).numpy()

    known = confidence(inputs.x)
    for name, x in (("shuffled", shuffled(inputs)), ("noise", noise(inputs))):
        other = confidence(x)
        labels = np.repeat([1, 0], [known.shape[1], other.shape[1]])
        for i in range(len(lanes)):
            area = roc_auc_score(labels, np.concatenate([known[i], other[i]]))
            # Rounding may swap neighbours among 80 x 80 pairs.
            assert columns[f"ood_auroc_{name}"][i] == pytest.approx(area, abs=2 / 6400)
