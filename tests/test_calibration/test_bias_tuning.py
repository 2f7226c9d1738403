"""Biases of the whole model, learned against the float model: the source's step, and what stays."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import quantized_layers

# Float inputs: biases are not whole steps of a product of integers, and a step can be read off.
ROUNDED = dict(weight=dict(num_bits=3), activation=dict(num_bits=None), method=dict(type='MSE'),
               first_last=dict(weight_bits=None))


def classifier():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(),
                          nn.Linear(16, 5))
    for parameter in model.parameters():
        parameter.data *= 2.5  # as sure of itself as a trained one
    return model


def inputs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(32, 8, generator=generator) for _ in range(count)]


def test_a_step_is_that_of_the_source(seeded):
    """``bias -= 0.1 * gradient`` of the mean over images and classes; not in the last layer."""
    batches = inputs(1) * 8  # whichever is drawn
    plain, tuned = seeded(classifier), seeded(classifier)
    quantize_model(plain, batches, ROUNDED)
    stage, = quantize_model(tuned, batches, dict(
        ROUNDED, tuning=dict(type='BiasTuning', steps=1))).tuning
    assert (stage['kept'], stage['best_step'], stage['loss']) == ('tuned', 1, 'kl')
    assert stage['learned']['biases'] == 32 and not stage['changed_codes']

    wanted = seeded(classifier)(batches[0]).softmax(-1)
    biases = [torch.zeros(16, requires_grad=True), torch.zeros(16, requires_grad=True)]
    first = torch.relu(plain[0](batches[0]).detach() + biases[0])
    second = torch.relu(nn.functional.linear(first, plain[2].weight) + biases[1])
    loss = (wanted * (wanted.log() - plain[4](second).log_softmax(-1))).mean()
    gradients = torch.autograd.grad(loss, biases)
    assert torch.allclose(tuned[0].bias, plain[0].bias - 0.1 * gradients[0], atol=1e-6)
    assert torch.allclose(tuned[2].product_bias, -0.1 * gradients[1], atol=1e-6)
    assert gradients[0].abs().max() > 1e-3
    assert torch.equal(tuned[4].bias, plain[4].bias)
    for (_, one), (_, other) in zip(quantized_layers(plain), quantized_layers(tuned)):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.weight_scale, other.weight_scale)


@pytest.mark.parametrize('options', [dict(steps=100, learning_rate=1.0),
                                     dict(optimizer='adam', learning_rate=0.02, steps=60,
                                          schedule='cosine', last_layers=True)])
def test_unseen_inputs_come_nearer_to_the_float_model(seeded, options):
    models = [seeded(classifier) for _ in range(2)]
    quantize_model(models[0], inputs(16), ROUNDED)
    quantize_model(models[1], inputs(16), dict(
        ROUNDED, tuning=dict(type='BiasTuning', **options)))
    x = torch.cat(inputs(16, seed=5))
    with torch.no_grad():
        wanted = seeded(classifier)(x).softmax(-1)
        apart = [float((wanted * (wanted.log() - model(x).log_softmax(-1))).sum())
                 for model in models]
    assert apart[1] < 0.8 * apart[0]


def test_what_is_no_better_leaves_the_layers_bit_for_bit(seeded, assert_same_state):
    models = [seeded(classifier) for _ in range(2)]
    quantize_model(models[0], inputs(8), ROUNDED)
    stage, = quantize_model(models[1], inputs(8), dict(
        ROUNDED, tuning=dict(type='BiasTuning', steps=3, learning_rate=1e4))).tuning
    assert stage['kept'] == 'start'
    assert_same_state(*models)  # the bias that a layer was lent is gone, too
