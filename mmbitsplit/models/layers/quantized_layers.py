"""Layers with integer weight codes and quantized inputs, and their float state before solving."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import apply_layer, channel_dim, weight_rows
from mmbitsplit.functional.kernels.precision import autocast_dtype, full_float32
from mmbitsplit.models.layers.float_weights import FloatWeights
from mmbitsplit.models.layers.in_place_base import must_be_called
from mmbitsplit.models.layers.layer_state import (
    NAMES,
    blank_solution,
    geometry_of_row,
    plan_row,
    to_file,
    to_memory,
)
from mmbitsplit.models.layers.layer_view import OF_NORM, SIDES, Integers, LayerView
from mmbitsplit.models.layers.outside_view import OutsideView, Remembered
from mmbitsplit.models.layers.quantizers import (
    ActivationQuantizer,
    ActivationQuantizerSet,
    WeightQuantizer,
    WeightQuantizerSet,
    check_widths,
    of_widths,
)
from mmbitsplit.models.layers.width_loading import load_widths, save_widths
from mmbitsplit.structures import LayerGeometry, LayerPlan, LayerSolution, QParams
from mmbitsplit.structures.solution import Nesting


class QuantizedLayer(LayerView):
    """A Conv2d, ConvTranspose2d or Linear that multiplies integer codes.

    A layer of a model takes this class in place (``surgery/turned.py``), or it stands by itself.

    Until ``install`` it computes the float layer. Afterwards the output is
    ``scale * (codes * x) + bias`` with x the input's codes less zero point (per-tensor, ECAQ) or
    its dequantized values (per-channel), computed in float, and rounded where the output is
    quantized too. ``weight_quantizer``, ``input_quantizer`` and ``output_quantizer`` do it, each
    ``None`` where there is none; ``layer_state`` says what a state dict holds of them. The float
    weights are kept beside the codes until ``release_float``.

    What it multiplies by is ``product_weight`` and ``product_bias``. ``weight`` and ``bias`` are
    for others who read them: in the units of the float model's layer.

    Args:
        geometry: Of the float layer.
        weight: What the float layer multiplies by, a batch norm behind it folded.
        bias: (out_channels,) or ``None``.
        declared: What the attributes of the float layer's class say, where that class pads by
            itself and so has another geometry.
        outside: How others see the float layer; as given when not given.
    """

    in_place_name = 'Quantized'

    declared: LayerGeometry | None
    channels_last = False
    _kept: FloatWeights | None

    def __init__(self, geometry: LayerGeometry, weight: Tensor, bias: Tensor | None,
                 declared: LayerGeometry | None = None, outside: OutsideView | None = None):
        super().__init__()
        self.begin(geometry, weight, bias, declared, outside)

    def begin(self, geometry: LayerGeometry, weight: Tensor, bias: Tensor | None,
              declared: LayerGeometry | None = None, outside: OutsideView | None = None) -> None:
        """Makes a module without parameters, buffers and children the float layer; see above."""
        self.geometry, self.declared = geometry, declared
        self._set_float(FloatWeights(*(None if value is None else nn.Parameter(
            value.detach().clone(), requires_grad=False) for value in (weight, bias))))
        self._modules.update(weight_quantizer=None, input_quantizer=None, output_quantizer=None)
        self._kept, self._as_read = None, Remembered()  # the first while codes are installed
        outside = outside or OutsideView(bias is not None)
        self._has_bias = outside.has_bias
        if outside.norm_scale is not None:
            self._buffers.update({name: getattr(outside, name).to(weight.dtype, copy=True)
                                  for name in OF_NORM})
            if not outside.stored:
                self._non_persistent_buffers_set.update(OF_NORM)
        self.register_forward_pre_hook(must_be_called)
        self._register_state_dict_hook(_as_in_a_file)

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        if output_size is not None:
            raise ValueError('output_size is not supported by quantized transposed '
                             'convolutions; leave this layer in float with an override '
                             "dict(match='...', skip=True).")
        # Codes are computed in full under autocast, too; what comes after gets what it expects.
        expected = autocast_dtype(self.geometry.kind, input.device) if self.quantized else None
        if expected is None:
            return self._compute(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._compute(input.to(self.weight_scale.dtype)).to(expected)

    def _compute(self, input: Tensor) -> Tensor:
        output = self.product(input)
        return output if self.output_quantizer is None else self.output_quantizer(output)

    def product(self, input: Tensor) -> Tensor:
        """What it gives before its output is rounded, in full precision."""
        if self.integers:
            output = self.weight_quantizer.product(input)
            if output is not None:
                return output
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        if self.channels_last and input.dim() == 4:  # then torch's convolutions give maps so, too
            input = input.contiguous(memory_format=torch.channels_last)
        # In TF32, torch's default for convolutions on GPUs, scale times code would be rounded.
        with full_float32() if self.quantized and input.is_cuda else nullcontext():
            return apply_layer(input, self.product_weight, self.product_bias, self.geometry)

    def install(self, solution: LayerSolution) -> None:
        """Computes with a solution from now on; float weights are kept until ``release_float``."""
        weights = [self._weight_quantizer(one, solution.nesting)
                   for one in (solution, *solution.narrower)]
        self.install_weight(WeightQuantizerSet(weights) if solution.narrower else weights[0])
        self.quantize_input(solution.qparams, solution.narrower_inputs)
        self.quantize_output(solution.output_qparams, solution.narrower_outputs)

    def install_weight(self, quantizer: WeightQuantizer | WeightQuantizerSet | Integers) -> None:
        """Computes with this weight, of one width or several, and its bias."""
        if not self.quantized:
            self._kept = self.float_weights()
            self._parameters.clear()
        self.weight_quantizer = quantizer.train(self.training)

    def lay_out(self, channels_last: bool) -> None:
        """Gives maps channels last in memory from now on, or as the input lies."""
        self.channels_last = channels_last
        if self.integers:
            self.weight_quantizer.lay_out(channels_last)

    @property
    def integers(self) -> bool:
        """Whether it multiplies bytes (``models.to_integer``), at widths that can."""
        return isinstance(self.weight_quantizer, Integers)

    def quantize_input(self, qparams: QParams | None, narrower: Sequence[QParams] = ()) -> None:
        """Rounds inputs from now on, whether codes are installed or not; ``None`` leaves them.

        Args:
            qparams: Of the widest width.
            narrower: Of others that the layer can be switched to.
        """
        if self.integers:  # made for the inputs of before
            self.weight_quantizer = self.weight_quantizer.plain()
        self.input_quantizer = self._quantizer(qparams, narrower)

    def quantize_output(self, qparams: QParams | None, narrower: Sequence[QParams] = ()) -> None:
        """Rounds outputs from now on; see ``quantize_input``."""
        self.output_quantizer = self._quantizer(qparams, narrower)

    def check_whole(self, name: str, before: str) -> None:
        """Raises ``ValueError`` where something is being learned: no file holds such.

        Args:
            name: Of the layer, for the message.
            before: What needs whole codes, as ``'it is exported'``.
        """
        learning = ', '.join(f'{side}_quantizer.harden()' for side in SIDES
                             if getattr(getattr(self, f'{side}_quantizer'), 'soft', False))
        if learning:
            what = f'codes that are not whole yet or scales that are being learned; call {learning}'
            raise ValueError(f"Layer '{name}' has {what} before {before}.")

    def use(self, weight: int | None = None, input: int | None = None,
            output: int | None = None) -> None:
        """Switches to other widths; ``None`` leaves one as it is.

        What it multiplies by is made here. Nothing is read, measured or kept but that.

        Args:
            weight, input, output: Of the widths that there are.

        Raises:
            ValueError: There is no such width; nothing has been switched then.
        """
        quantizers = [self._modules[f'{side}_quantizer'] for side in SIDES]
        check_widths(dict(zip(SIDES, quantizers)), dict(zip(SIDES, (weight, input, output))))
        for num_bits, quantizer in zip((input, output), quantizers[1:]):
            if num_bits is not None:
                quantizer.use(num_bits)
        if quantizers[0] is not None:
            factor = self.input_factor
            quantizers[0].use(quantizers[0].num_bits if weight is None else weight,
                              factor if isinstance(factor, float) else None)

    def solution(self) -> LayerSolution:
        """What the quantizers stand for now, as ``install`` takes it: whole codes, all copied."""
        found, inputs, outputs = self.weight_quantizer.solution(), *(
            (None,) if quantizer is None else quantizer.solutions()
            for quantizer in (self.input_quantizer, self.output_quantizer))
        if isinstance(self.input_quantizer, ActivationQuantizerSet):
            found = _carrying(found, self.input_quantizer.carried())
        return replace(found, qparams=inputs[0], output_qparams=outputs[0],
                       narrower_inputs=inputs[1:], narrower_outputs=outputs[1:])

    def float_forward(self, input: Tensor) -> Tensor:
        """What the float layer makes of an input, whether codes are installed or not."""
        kept = self.float_weights()
        return apply_layer(input, kept.weight, kept.bias, self.geometry)

    def float_weights(self) -> FloatWeights:
        """The float layer's weight and bias.

        Raises:
            RuntimeError: They have been released.
        """
        if not self.quantized:
            return FloatWeights(self._parameters['weight'], self._parameters['bias'])
        if self._kept is None:
            raise RuntimeError('The float weights of this layer have been released: calibration '
                               'is over, or it was loaded from a quantized checkpoint. Load the '
                               'float model again.')
        return self._kept

    def float_rows(self) -> Tensor:
        """The float weight as rows (G, M, N)."""
        return weight_rows(self.float_weights().weight.detach(), self.geometry)

    def to_float(self) -> None:
        """Takes back ``install``: the layer is the float layer that it was."""
        kept = self.float_weights()
        self.weight_quantizer = self.input_quantizer = self.output_quantizer = self._kept = None
        self._set_float(kept)

    def release_float(self) -> None:
        """Gives the memory of the float weights back; there is no way back to float then."""
        self._kept = None

    # Checkpoints.

    def plan_row(self, plan: LayerPlan | None = None) -> dict[str, Any]:
        """What a checkpoint must say besides tensors to build this layer again."""
        row = plan_row(self.solution(), self.geometry, self.declared, plan)
        stored = set(OF_NORM) <= self._buffers.keys() - self._non_persistent_buffers_set
        return {**row, 'norm': True} if stored else row

    def expect(self, row: dict[str, Any]) -> None:
        """Makes room for the state that ``plan_row`` described, before it is loaded."""
        geometry_of_row(row, self.declared or self.geometry)
        self.install(blank_solution(row, self.geometry))
        self.release_float()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                              *args):
        if self.integers:
            raise ValueError(f"Layer '{prefix.removesuffix('.')}' is computed with integers; take "
                             'it back before a state is loaded, with to_integer(model, False).')
        if self.quantized:
            self.check_whole(prefix.removesuffix('.'), 'its state is saved or loaded')
        if self.quantized and self.several:
            load_widths(self, state_dict, prefix, missing_keys)
        elif self.quantized:
            own = {prefix + name: name for name in NAMES}
            found = {name: state_dict.pop(key) for key, name in own.items() if key in state_dict}
            inner = dict((*self.named_parameters(), *self.named_buffers()))
            for name, place in NAMES.items():
                if place in inner and name not in found:
                    missing_keys.append(prefix + name)
                    state_dict[prefix + place] = inner[place]
            state_dict.update({prefix + place: value for place, value in to_memory(
                found, self.num_bits, self.geometry).items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys,
                                      *args)

    def _weight_quantizer(self, solution: LayerSolution, nesting: Nesting | None,
                          ) -> WeightQuantizer:
        device, dtype = self.product_weight.device, self.product_weight.dtype
        bias, offset, codes = solution.bias, solution.weight_offset, solution.codes
        return WeightQuantizer(
            self.geometry, solution.num_bits, None if codes is None else codes.to(device),
            solution.weight_scale.to(device), None if bias is None else bias.to(device, dtype),
            None if offset is None else offset.to(device), nesting)

    def _quantizer(self, qparams: QParams | None, narrower: Sequence[QParams],
                   ) -> ActivationQuantizer | ActivationQuantizerSet | None:
        if qparams is None:
            return None
        made = [ActivationQuantizer(one, channel_dim(self.geometry)).to(self.product_weight.device)
                for one in (qparams, *narrower)]
        return of_widths(made, qparams.unit).train(self.training)

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        self._as_read.forget()
        if self._kept is not None:
            self._kept = self._kept.map(fn)
        return self

    def _set_float(self, weights: FloatWeights) -> None:
        # Not by name: what stands under these names is read by others.
        self._parameters.update(weight=weights.weight, bias=weights.bias)

    def extra_repr(self) -> str:
        geometry = self.geometry
        state = 'quantized' if self.quantized else 'float'
        return (f'{geometry.kind}, {geometry.in_channels}, {geometry.out_channels}, '
                f'kernel_size={geometry.kernel_size}, groups={geometry.groups}, {state}')


def _as_in_a_file(layer: QuantizedLayer, state: dict[str, Any], prefix: str, metadata: Any,
                  ) -> None:
    """A hook: tensors of quantizers stand in a state dict under the layer's own name, packed."""
    if not layer.quantized:
        return
    layer.check_whole(prefix.removesuffix('.'), 'its state is saved or loaded')
    if layer.several:
        save_widths(layer, state, prefix)
        return
    inner = {place: state.pop(prefix + place) for place in NAMES.values()
             if prefix + place in state}
    state.update({prefix + name: value for name, value in to_file(
        inner, layer.num_bits, layer.geometry).items()})


def _carrying(solution: LayerSolution, growth: float) -> LayerSolution:
    """The solution whose weights carry an input scale that has grown since."""
    if growth == 1.0:
        return solution
    offset = solution.weight_offset
    return replace(
        solution, weight_scale=solution.weight_scale * growth,
        weight_offset=None if offset is None else offset * growth,
        narrower=tuple(_carrying(one, growth) for one in solution.narrower))
