"""The model that a quantized checkpoint loads into."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ALL_MODELS
from torch import Tensor, nn

from mmbitsplit.models import rebuild
from mmbitsplit.registry import MODELS

PLAN_KEY = 'quantization_plan'


@MODELS.register_module()
class QuantizedModel(BaseModel):
    """Wraps an upstream model; turns into its quantized form when a checkpoint is loaded.

    The checkpoint carries the plan (which layers, bits, inputs, folded batch norms) beside the
    tensors, so that the config names the upstream model and nothing else. Attributes that it
    does not have are those of the wrapped model.

    Args:
        model: Config of the upstream float model, or the model itself.
        data_preprocessor: The model's, where its config does not name one: mmengine hands a
            config's top-level ``data_preprocessor`` to the outermost model.
    """

    def __init__(self, model: Mapping[str, Any] | nn.Module,
                 data_preprocessor: Mapping[str, Any] | None = None):
        super().__init__()
        if not isinstance(model, nn.Module):
            if data_preprocessor is not None and not model.get('data_preprocessor'):
                model = {**model, 'data_preprocessor': data_preprocessor}
            model = ALL_MODELS.build(model)
        self.model = model
        self.data_preprocessor = self.model.data_preprocessor
        self.register_buffer(PLAN_KEY, torch.zeros(0, dtype=torch.uint8))

    def set_plan(self, description: Mapping[str, Any]) -> None:
        """Notes what ``models.describe`` said of a model quantized in place."""
        self._buffers[PLAN_KEY] = encode_plan(description)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def val_step(self, data: Any) -> list:
        return self.model.val_step(data)

    def test_step(self, data: Any) -> list:
        return self.model.test_step(data)

    def train_step(self, *args: Any, **kwargs: Any) -> dict:
        raise ValueError('A quantized model cannot be trained; quantize the float model again.')

    def init_weights(self) -> None:
        """Nothing to do: the weights come from the checkpoint."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'model':
                raise
            return getattr(self.model, name)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        plan = state_dict.get(prefix + PLAN_KEY)
        if plan is None or not plan.numel():
            raise ValueError('The checkpoint holds no quantization plan: it is not one that '
                             'mmbitsplit wrote. Load quantized.pth, or use the float config.')
        if not self.quantization_plan.numel():
            rebuild(self.model, decode_plan(plan))
        self._buffers[PLAN_KEY] = torch.zeros_like(plan)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def encode_plan(description: Mapping[str, Any]) -> Tensor:
    """Writes plain values as a uint8 tensor of JSON, which every loader of tensors keeps."""
    return torch.frombuffer(bytearray(json.dumps(description).encode()), dtype=torch.uint8)


def decode_plan(plan: Tensor) -> dict[str, Any]:
    """Inverse of ``encode_plan``."""
    return json.loads(bytes(plan.cpu().tolist()).decode())
