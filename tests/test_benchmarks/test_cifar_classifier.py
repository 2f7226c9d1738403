"""The CIFAR configs' classifier is the benchmark's network, weights and all."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmpretrain.structures import DataSample  # noqa: E402

from benchmarks.cifar import CifarResNet  # noqa: E402
from benchmarks.cifar_classifier import CifarResNetClassifier  # noqa: E402


@pytest.fixture(scope='module')
def models():
    """The network with random statistics, and the classifier with its weights."""
    torch.manual_seed(0)
    network = CifarResNet(20)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    classifier = CifarResNetClassifier(20)
    classifier.load_state_dict(network.state_dict())  # the published names, no more, no less
    return network.eval(), classifier.eval()


def test_logits_are_the_networks(models):
    network, classifier = models
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier(images), network(images))


def test_predictions_follow_the_logits(models):
    network, classifier = models
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        samples = classifier(images, [DataSample() for _ in range(4)], mode='predict')
        wanted = network(images)
    assert [int(sample.pred_label) for sample in samples] == wanted.argmax(1).tolist()
    assert torch.allclose(torch.stack([s.pred_score for s in samples]), wanted.softmax(1))


def test_loss_is_cross_entropy_and_other_modes_are_refused(models):
    network, classifier = models
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 9, 5])
    samples = [DataSample().set_gt_label(label) for label in labels]
    with torch.no_grad():
        loss = classifier(images, samples, mode='loss')['loss']
        wanted = torch.nn.functional.cross_entropy(network(images), labels)
    assert torch.allclose(loss, wanted)
    with pytest.raises(ValueError, match="mode='fast' is not known"):
        classifier(images, mode='fast')
