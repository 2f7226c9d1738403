"""The CIFAR network as mmpretrain wants models, for the configs of configs/cifar.

The published weights name their tensors ``conv1``, ``layer1``, ..., ``linear``; mmpretrain's own
``backbone.`` and ``head.`` would need a converted copy of them. So this is a whole classifier.
"""

from mmpretrain.models import BaseClassifier, ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from benchmarks.cifar import CifarResNet


@MODELS.register_module()
class CifarResNetClassifier(BaseClassifier):
    """He et al.'s CIFAR network of 6n + 2 layers, weights under their published names.

    Args:
        depth: 20, 32, 44, 56 or 110.
        data_preprocessor: Settings of mmpretrain's ``ClsDataPreprocessor``.
        init_cfg: Of mmengine.
    """

    def __init__(self, depth: int, data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None):
        super().__init__(init_cfg, {
            'type': 'mmpretrain.ClsDataPreprocessor', **(data_preprocessor or {})})
        for name, module in CifarResNet(depth).named_children():
            self.add_module(name, module)
        self.head = ClsHead()  # has no weights

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None,
                mode: str = 'tensor'):
        """Returns logits, or in mode ``'predict'`` samples with their predictions."""
        logits = CifarResNet.forward(self, inputs)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return self.head.predict((logits,), data_samples)
        if mode == 'loss':
            return self.head.loss((logits,), data_samples)
        raise ValueError(f"mode='{mode}' is not known; allowed are 'tensor', 'predict', 'loss'.")
