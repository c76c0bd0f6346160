"""Attacks raise the loss, stay in their ball, and are those of a plain loop."""

import pytest
import torch
from torch.nn import functional

from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.quality import measure
from sparsefront.trainables.quality.adversarial import RADIUS_STD, attack
from sparsefront.trainables.quality.subject import Inputs, Subject, rivals_log_odds
from tests.oracles import networks as oracle

EVERY = slice(None)


def subject_of(trained, examples, family):
    model, flat, _, lanes = trained(family)
    inputs = Inputs(examples[1], seed=0)
    return Subject(model, lanes.layout, lanes.flat, inputs), Subject(
        model, Layout.of(model.structure), flat[None], inputs
    )


def test_log_odds_rank_as_cross_entropy():
    logits, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    loss = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(functional.softplus(rivals_log_odds(logits, labels)), loss)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_fgsm_raises_the_loss_and_pgd_raises_it_more(family, trained, examples):
    for subject in subject_of(trained, examples, family):
        clean = rivals_log_odds(subject.clean, subject.labels)
        attacked = attack(subject, EVERY)
        assert (attacked.fgsm_log_odds.mean(dim=1) > clean.mean(dim=1)).all()
        assert (attacked.fgsm_log_odds > clean).double().mean() > 0.95
        assert (attacked.pgd_log_odds >= attacked.fgsm_log_odds).all()
        assert (attacked.pgd_log_odds >= clean - 1e-6).all()
        assert (attacked.pgd_wrong | ~attacked.fgsm_wrong).all()
        error = (subject.clean.argmax(dim=2) != subject.labels).double().mean(dim=1)
        assert (attacked.pgd_wrong.double().mean(dim=1) >= error).all()


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
def test_attacks_are_those_of_a_plain_loop(family, trained, examples):
    _, subject = subject_of(trained, examples, family)
    weights = {n: v[0] for n, v in subject.tensors.items()}
    clean, labels = examples[1].x, examples[1].labels
    radius = RADIUS_STD * float(clean.double().std(correction=0))

    def gradient(x):
        x = x.clone().requires_grad_(True)
        functional.cross_entropy(oracle.logits(family, weights, x).double(), labels, reduction="sum").backward()
        return x.grad

    def log_odds(x):
        return rivals_log_odds(oracle.logits(family, weights, x), labels)

    fgsm = clean + radius * gradient(clean).sign()
    worst, x = torch.maximum(log_odds(clean), log_odds(fgsm)), clean
    for _ in range(10):
        x = x + 0.25 * radius * gradient(x).sign()
        x = clean + (x - clean).clamp(-radius, radius)
        worst = torch.maximum(worst, log_odds(x))
    attacked = attack(subject, EVERY)
    torch.testing.assert_close(attacked.fgsm_log_odds[0], log_odds(fgsm), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(attacked.pgd_log_odds[0], worst, atol=1e-3, rtol=1e-3)


def test_a_network_that_is_sure_of_itself_is_attacked_all_the_same(trained, examples):
    """Logits a thousand times larger leave cross-entropy without a gradient in float32."""
    model, flat, _, _ = trained("mlp")
    _, subject = subject_of(trained, examples, "mlp")
    sure = flat.clone()
    Layout.of(model.structure).views(sure[None])["layers.2.weight"].mul_(1000)
    Layout.of(model.structure).views(sure[None])["layers.2.bias"].mul_(1000)
    scaled = Subject(model, subject.layout, sure[None], subject.inputs)
    right = (scaled.clean.argmax(dim=2) == scaled.labels)[0]
    logits = scaled.clean[0].clone().requires_grad_(True)
    functional.cross_entropy(logits, scaled.labels, reduction="sum").backward()
    is_masked = (logits.grad[torch.arange(80), scaled.labels] == 0) & right
    assert is_masked.float().mean() > 0.5
    attacked = attack(scaled, EVERY)
    clean = rivals_log_odds(scaled.clean, scaled.labels)[0]
    assert (attacked.fgsm_log_odds[0] > clean)[is_masked].all()


def test_without_a_spread_there_is_nothing_to_attack_with(trained, examples):
    model, _, _, lanes = trained("mlp")
    constant = type(examples[1])(torch.ones_like(examples[1].x), examples[1].labels, examples[1].one_hot)
    columns = measure(["adversarial", "calibration"], model, lanes, constant, parent=None, seed=0)
    assert (columns["fgsm_error"] == columns["pgd_error"]).all()
