"""The model that a quantized checkpoint loads into."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ALL_MODELS
from torch import Tensor, nn

from mmbitsplit.engine.run.integers import IntegerMode, IntegerUse
from mmbitsplit.export import HEADER_KEY, PAYLOAD_KEY, PLAN_KEY, check_fit, unpack_state
from mmbitsplit.models import note_surgery, rebuild, set_bits, set_plan, use_bits
from mmbitsplit.models.surgery.integers import check_mode
from mmbitsplit.registry import MODELS
from mmbitsplit.structures import BitPlan, PlanSpec

WRAPPER = 'mmbitsplit.QuantizedModel'


@MODELS.register_module()
class QuantizedModel(BaseModel):
    """Wraps an upstream model; turns into its quantized form when a checkpoint is loaded.

    The checkpoint carries the plan (which layers, bits, inputs, folded batch norms) beside the
    tensors, so that the config names the upstream model and nothing else. What is damaged, or does
    not fit the model whole, is refused, also by loaders that would only warn. Attributes that it
    does not have are those of the wrapped model.

    Args:
        model: Type of the upstream float model, with the rest of its config in ``parts``; or its
            config; or the model itself.
        data_preprocessor: The model's, where its config does not name one: mmengine hands a
            config's top-level ``data_preprocessor`` to the outermost model.
        quantized_bits: Of a checkpoint of several widths, which to use from the start: ``4``,
            ``dict(weight=3, activation=8)``, or a plan (its path or its contents). The widest when
            not given.
        integer: Whether quantized layers multiply bytes from the first call on
            (``models.to_integer``): ``True``, ``'auto'`` (where torch and processor can) or
            ``False``.
        parts: The rest of the config of the upstream model. They stand beside ``type`` because
            upstream tools look for ``cfg.model.backbone``.
    """

    names_inside = 'model'  # names in plans are those of the upstream model

    def __init__(self, model: str | Mapping[str, Any] | nn.Module,
                 data_preprocessor: Mapping[str, Any] | None = None,
                 quantized_bits: int | Mapping[str, Any] | str | Path | None = None,
                 integer: IntegerMode = False, **parts: Any):
        super().__init__()
        check_mode(integer)
        if isinstance(model, str):
            model = dict(type=model, **parts)
        elif parts:
            raise ValueError(f"'{next(iter(parts))}' is not known beside a model; give the "
                             'model as the name of its type, or put this into its config.')
        if not isinstance(model, nn.Module):
            if data_preprocessor is not None and not model.get('data_preprocessor'):
                model = {**model, 'data_preprocessor': data_preprocessor}
            model = ALL_MODELS.build(model)
        self.model = model
        self.quantized_bits = quantized_bits
        self.data_preprocessor = self.model.data_preprocessor
        self.register_buffer(PLAN_KEY, torch.zeros(0, dtype=torch.uint8))
        self.integers, self._integers_begun = IntegerUse(integer), False

    def note_description(self, description: Mapping[str, Any]) -> None:
        """Notes what ``models.describe`` said of a model quantized in place."""
        self._buffers[PLAN_KEY] = encode_plan(description)
        note_surgery(self.model, dict(description))

    def set_bits(self, bits: int | None = None, *, weight: int | None = None,
                 activation: int | None = None) -> None:
        """See ``apis.set_bits``."""
        set_bits(self, bits, weight=weight, activation=activation)

    def set_plan(self, plan: PlanSpec | BitPlan | Mapping[str, Any] | str | Path) -> None:
        """See ``apis.set_plan``."""
        set_plan(self, plan)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self.model, *args, **kwargs)

    def val_step(self, data: Any) -> list:
        return self._call(self.model.val_step, data)

    def test_step(self, data: Any) -> list:
        return self._call(self.model.test_step, data)

    def use_integers(self, integer: IntegerMode) -> None:
        """Asks for layers that multiply bytes, or takes them back; see ``models.to_integer``."""
        self.integers, self._integers_begun = IntegerUse(integer), True
        self.integers.start(self.model)

    def _call(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._integers_begun and self.integers.asked and self.quantization_plan.numel():
            self.use_integers(self.integers.asked)  # it is where it is to run by now
        return self.integers.call(self.model, step, *args, **kwargs)

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
        # The loaders of torch and mmengine hand over a copy of what they were given, and take
        # from it what the children load.
        packed = unpack_state({name.removeprefix(prefix): value for name, value
                               in state_dict.items() if name.startswith(prefix)})
        plan = encode_plan(packed.description)
        if not self.quantization_plan.numel():
            rebuild(self.model, packed.description)
            # Layers keep it while they are loaded.
            use_bits(self, self.quantized_bits, 'quantized_bits')
        elif decode_plan(self.quantization_plan) != packed.description:
            raise ValueError('The model holds another quantized checkpoint already; build it '
                             'again to load this one.')
        own = self.state_dict()
        del own[PLAN_KEY]
        check_fit(packed.state, own)
        self._buffers[PLAN_KEY] = plan
        for name in (HEADER_KEY, PAYLOAD_KEY):
            state_dict.pop(prefix + name, None)
        state_dict.update({prefix + name: value for name, value in packed.state.items()})
        state_dict[prefix + PLAN_KEY] = plan
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def check_wrapped(cfg: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` unless a config is one that loads a quantized checkpoint."""
    found = (cfg.get('model') or {}).get('type')
    if found != WRAPPER:
        raise ValueError(f"The config's model is {found!r}, not '{WRAPPER}'; pass the "
                         'quantized_config.py that tools/quantize.py wrote beside the '
                         'checkpoint.')


def encode_plan(description: Mapping[str, Any]) -> Tensor:
    """Writes plain values as a uint8 tensor of JSON, which every loader of tensors keeps."""
    return torch.frombuffer(bytearray(json.dumps(description).encode()), dtype=torch.uint8)


def decode_plan(plan: Tensor) -> dict[str, Any]:
    """Inverse of ``encode_plan``."""
    return json.loads(bytes(plan.cpu().tolist()).decode())
