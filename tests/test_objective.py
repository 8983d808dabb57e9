"""Losses against their definitions in float64, and the laws that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax import objective

B, S = 6, 5


def logits(seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, (B, S)).astype(np.float32)


def one_hot(seed=1):
    return np.eye(S, dtype=np.float32)[np.random.default_rng(seed).integers(0, S, B)]


def mixed(seed=2):
    return np.random.default_rng(seed).dirichlet(np.ones(S), B).astype(np.float32)


def several(seed=3):
    return (np.random.default_rng(seed).uniform(size=(B, S)) < 0.4).astype(np.float32)


@pytest.mark.parametrize("target", [one_hot(), mixed()], ids=["one_hot", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_softmax_loss_is_cross_entropy(target, smoothing, wrap):
    x = logits().astype(np.float64)
    log_probability = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    softened = target * (1 - smoothing) + smoothing / S
    loss = wrap(objective.softmax_loss)(logits(), target, smoothing)
    np.testing.assert_allclose(loss, -(softened * log_probability).sum(axis=1), rtol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_sigmoid_loss_is_mean_binary_cross_entropy(smoothing, wrap):
    probability = 1 / (1 + np.exp(-logits().astype(np.float64)))
    softened = several() * (1 - smoothing) + smoothing / 2
    wanted = -(softened * np.log(probability) + (1 - softened) * np.log(1 - probability)).mean(axis=1)
    np.testing.assert_allclose(wrap(objective.sigmoid_loss)(logits(), several(), smoothing), wanted, rtol=2e-6)


@pytest.mark.parametrize(("labels", "target", "share"), [("single", mixed(), 1), ("multi", several(), S)])
def test_gradient_is_score_minus_target(labels, target, share):
    gradient = jax.grad(lambda x: objective.loss(labels)(x, target, 0.0).sum())(logits())
    np.testing.assert_allclose(gradient, (objective.scores(logits(), labels) - target) / share, atol=1e-6)


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_huge_logits_stay_finite(labels):
    x = jnp.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]])
    right, wrong = jnp.array([[1.0, 0, 0], [0, 0, 1.0]]), jnp.array([[0.0, 1, 0], [1.0, 0, 0]])
    for target in (right, wrong):
        loss, slope = jax.value_and_grad(lambda x, t=target: objective.loss(labels)(x, t, 0.1).sum())(x)
        assert np.isfinite(loss) and np.isfinite(slope).all()
    assert (objective.loss(labels)(x, right, 0.0) < objective.loss(labels)(x, wrong, 0.0)).all()


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_half_precision_logits_give_float32(labels):
    x = jnp.asarray(logits(), jnp.bfloat16)
    loss = objective.loss(labels)(x, one_hot(), 0.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, objective.loss(labels)(x.astype(jnp.float32), one_hot(), 0.0))
    assert objective.scores(x, labels).dtype == jnp.float32


def test_scores_are_probabilities():
    np.testing.assert_allclose(objective.scores(logits(), "single").sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(objective.scores(logits(), "multi"), 1 / (1 + np.exp(-logits())), rtol=1e-5)


def test_each_clip_has_its_own_loss():
    changed = logits()
    changed[2] += np.arange(S)
    for labels in ("single", "multi"):
        a, b = (np.asarray(objective.loss(labels)(x, one_hot(), 0.1)) for x in (logits(), changed))
        assert list(np.flatnonzero(a != b)) == [2]


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
        objective.softmax_loss(logits(), jnp.zeros((B, S - 1)))
