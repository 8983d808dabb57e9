"""Losses against their definitions in float64, and the laws that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.models.heads import probabilities
from datar_jax.training.tasks import classification as objective

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
    np.testing.assert_allclose(gradient, (probabilities(logits(), labels) - target) / share, atol=1e-6)


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
    assert probabilities(x, labels).dtype == jnp.float32


def test_scores_are_probabilities():
    np.testing.assert_allclose(probabilities(logits(), "single").sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits(), "multi"), 1 / (1 + np.exp(-logits())), rtol=1e-5)


def two_heads(seed=4):
    """One label of the first two classes and one of the other three, mixed with the next clip's as mixup does."""
    rng = np.random.default_rng(seed)
    target = np.concatenate([np.eye(2)[rng.integers(0, 2, B)], np.eye(3)[rng.integers(0, 3, B)]], axis=1)
    return (0.7 * target + 0.3 * np.roll(target, 1, 0)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_several_heads_are_softmaxes_of_their_own_and_their_losses_add_up(smoothing, wrap):
    x, wanted = logits().astype(np.float64), 0
    for part in (slice(0, 2), slice(2, 5)):
        probability = np.exp(x[:, part]) / np.exp(x[:, part]).sum(axis=1, keepdims=True)
        softened = two_heads()[:, part] * (1 - smoothing) + smoothing / probability.shape[1]
        wanted = wanted - (softened * np.log(probability)).sum(axis=1)
        scores = wrap(lambda x: probabilities(x, "single", (2, 3)))(logits())
        np.testing.assert_allclose(scores[:, part], probability, rtol=1e-5)
    loss = wrap(lambda x, target: objective.loss("single", (2, 3))(x, target, smoothing))(logits(), two_heads())
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)


def test_the_gradient_of_several_heads_is_score_minus_target():
    gradient = jax.grad(lambda x: objective.loss("single", (2, 3))(x, two_heads(), 0.0).sum())(logits())
    np.testing.assert_allclose(gradient, probabilities(logits(), "single", (2, 3)) - two_heads(), atol=1e-6)


def test_one_head_is_no_head():
    for heads in ((), (S,)):
        loss = objective.loss("single", heads)(logits(), mixed(), 0.1)
        np.testing.assert_array_equal(loss, objective.softmax_loss(logits(), mixed(), 0.1))
        np.testing.assert_array_equal(probabilities(logits(), "single", heads), jax.nn.softmax(logits()))


def test_any_number_of_labels_knows_no_heads():
    for heads in ((), (2, 3)):
        loss = objective.loss("multi", heads)(logits(), several(), 0.1)
        np.testing.assert_array_equal(loss, objective.sigmoid_loss(logits(), several(), 0.1))
        np.testing.assert_array_equal(probabilities(logits(), "multi", heads), jax.nn.sigmoid(logits()))


@pytest.mark.parametrize("heads", [(2, 2), (2, 4), (4,)])
def test_heads_that_do_not_share_out_the_classes_are_refused(heads):
    with pytest.raises(ValueError, match=r"share out all classes"):
        objective.loss("single", heads)(logits(), one_hot(), 0.0)
    with pytest.raises(ValueError, match=r"share out all classes"):
        probabilities(logits(), "single", heads)


def test_each_clip_has_its_own_loss():
    changed = logits()
    changed[2] += np.arange(S)
    for labels in ("single", "multi"):
        a, b = (np.asarray(objective.loss(labels)(x, one_hot(), 0.1)) for x in (logits(), changed))
        assert list(np.flatnonzero(a != b)) == [2]


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
        objective.softmax_loss(logits(), jnp.zeros((B, S - 1)))
