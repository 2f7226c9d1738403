"""Layers with integer weight codes and quantized inputs, and their float state before solving."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import (
    apply_layer,
    channel_dim,
    pack_codes,
    product_input,
    rows_to_weight,
    unpack_codes,
    weight_rows,
)
from mmbitsplit.functional.kernels.precision import autocast_dtype, full_float32
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams

# What is a buffer once codes are installed: ``weight`` is what the others stand for.
STATE = ('codes', 'weight_scale', 'weight_offset', 'weight', 'input_scale', 'input_zero_point',
         'input_max', 'output_scale', 'output_zero_point', 'output_max')


@dataclasses.dataclass(frozen=True)
class FloatWeights:
    """What a layer computes with in float.

    Args:
        weight: As torch stores it for this kind.
        bias: (out_channels,) or ``None``.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def map(self, fn: Callable[[Tensor], Tensor]) -> 'FloatWeights':
        """The same on another device or in another dtype."""
        return FloatWeights(*(value if value is None else nn.Parameter(
            fn(value.detach()), requires_grad=value.requires_grad)
            for value in (self.weight, self.bias)))


class QuantizedLayer(nn.Module):
    """A Conv2d, ConvTranspose2d or Linear that multiplies integer codes.

    Until ``install`` it computes the float layer. The float weights are kept beside the codes, so
    that ``float_forward`` and ``to_float`` work, until ``release_float``. After ``install``
    ``codes`` (int8, the weight's shape), ``weight_scale`` (out_channels,), ``bias`` and the
    input's ``input_scale`` and ``input_zero_point`` are its state, and the output is
    ``weight_scale * (codes * x) + bias`` with x the input's codes less zero point (per-tensor,
    ECAQ) or its dequantized values (per-channel), computed in float. Where the output is quantized
    too, ``output_scale`` and ``output_zero_point`` (1,) are state, and the output is rounded to
    their grid. Some methods add ``weight_offset`` (out_channels,) to every weight of an output
    channel, or give the channels of the input widths of their own, whose largest codes are
    ``input_max``. In a state
    dict the codes stand bit-packed, one row an output channel (``functional.pack_codes``).

    Args:
        geometry: Of the float layer.
        weight: Its float weight.
        bias: (out_channels,) or ``None``.
        declared: What the attributes of the float layer's class say, where that class pads by
            itself and so has another geometry.
    """

    def __init__(self, geometry: LayerGeometry, weight: Tensor, bias: Tensor | None,
                 declared: LayerGeometry | None = None):
        super().__init__()
        self.geometry, self.declared = geometry, declared
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(),
                                                           requires_grad=False)
        self._kept: FloatWeights | None = None  # while codes are installed
        self.qparams: QParams | None = None
        self.output_qparams: QParams | None = None
        self._ranges: dict[str, tuple[int, int, bool]] = {}  # of codes, and unit
        self.num_bits: int | None = None
        # Parents read these of the layers they hold.
        self.in_channels = self.in_features = geometry.in_channels
        self.out_channels = self.out_features = geometry.out_channels
        self.kernel_size, self.stride = geometry.kernel_size, geometry.stride
        self.padding, self.dilation, self.groups = (geometry.padding, geometry.dilation,
                                                    geometry.groups)
        self.register_forward_pre_hook(must_be_called)

    @property
    def quantized(self) -> bool:
        """Whether codes are installed."""
        return 'codes' in self._buffers

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
            return self._compute(input.to(self.weight.dtype)).to(expected)

    def _compute(self, input: Tensor) -> Tensor:
        if self.qparams is not None:
            input = product_input(input, self.qparams, channel_dim(self.geometry))
        # In TF32, torch's default for convolutions on GPUs, scale times code would be rounded.
        with full_float32() if self.quantized and input.is_cuda else nullcontext():
            output = apply_layer(input, self.weight, self.bias, self.geometry)
        if self.output_qparams is not None:
            output = product_input(output, self.output_qparams, channel_dim(self.geometry))
        return output

    def install(self, solution: LayerSolution) -> None:
        """Computes with a solution from now on; float weights are kept until ``release_float``."""
        if not self.quantized:
            self._kept = FloatWeights(self.weight, self.bias)
        device, dtype = self.weight.device, self.weight.dtype
        self.num_bits = solution.num_bits
        self._set_buffer('codes', solution.codes.to(device))
        self._set_buffer('weight_scale', solution.weight_scale.to(device, torch.float32))
        self.bias = None if solution.bias is None else nn.Parameter(
            solution.bias.to(device, dtype), requires_grad=False)
        self._buffers.pop('weight_offset', None)
        if solution.weight_offset is not None:
            self._set_buffer('weight_offset', solution.weight_offset.to(device, torch.float32))
        self._set_qparams('input', solution.qparams)
        self._set_qparams('output', solution.output_qparams)
        self._refresh()

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
            return FloatWeights(self.weight, self.bias)
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
        for name in STATE:
            self._buffers.pop(name, None)
        self._non_persistent_buffers_set.discard('weight')
        self._ranges.clear()
        self.qparams = self.output_qparams = self.num_bits = self._kept = None
        self.weight, self.bias = kept.weight, kept.bias

    def release_float(self) -> None:
        """Gives the memory of the float weights back; there is no way back to float then."""
        self._kept = None

    def plan_row(self) -> dict[str, Any]:
        """What a checkpoint must say besides tensors to build this layer again."""
        row = {'kind': self.geometry.kind, 'shape': list(self.geometry.weight_shape),
               'num_bits': self.num_bits, 'bias': self.bias is not None, 'input': None,
               'geometry': _unusual(self.geometry)}
        for side, (quant_min, quant_max, unit) in self._ranges.items():
            row[side] = {'size': self._buffers[f'{side}_scale'].numel(), 'quant_min': quant_min,
                         'quant_max': quant_max, 'unit': unit}
        if self.declared is not None:
            row['class_geometry'] = _unusual(self.declared)
        if 'input_max' in self._buffers:
            row['input']['mixed'] = True
        if 'weight_offset' in self._buffers:
            row['weight_offset'] = True
        return row

    def expect(self, row: dict[str, Any]) -> None:
        """Makes room for the state that ``plan_row`` described, before it is loaded."""
        if row['kind'] != self.geometry.kind:
            raise ValueError(f"the checkpoint has a {row['kind']} where the model has a "
                             f'{self.geometry.kind}.')
        shape = list(self.geometry.weight_shape)
        if list(row['shape']) != shape:  # packed rows of other lengths may have as many bytes
            raise ValueError(f"the checkpoint has a weight of shape {list(row['shape'])} where "
                             f'the model has {shape}.')
        theirs, ours = row.get('geometry'), _unusual(self.geometry)
        if self.declared is not None:
            theirs, ours = row['class_geometry'], _unusual(self.declared)
        if theirs is not None and theirs != ours:  # strides and the like leave shapes as they are
            raise ValueError(f'the checkpoint has a {self.geometry.kind} with '
                             f'{theirs or "default geometry"} where the model has '
                             f'{ours or "default geometry"}.')
        device, channels = self.weight.device, self.geometry.out_channels
        self.num_bits = row['num_bits']
        self._set_buffer('codes', torch.zeros(shape, dtype=torch.int8, device=device))
        self._set_buffer('weight_scale', torch.ones(channels, device=device))
        if row.get('weight_offset'):
            self._set_buffer('weight_offset', torch.zeros(channels, device=device))
        self.bias = nn.Parameter(
            torch.zeros(channels, device=device, dtype=self.weight.dtype),
            requires_grad=False) if row['bias'] else None
        for side in ('input', 'output'):
            values = row.get(side)  # older checkpoints say nothing of outputs
            if values is not None:
                size = values['size']
                self._set_qparams(side, QParams(
                    torch.ones(size), torch.zeros(size), values['quant_min'],
                    values['quant_max'], unit=values['unit'],
                    channel_max=torch.zeros(size) if values.get('mixed') else None))
        self._refresh()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.quantized:
            rows = weight_rows(self.codes, self.geometry).flatten(0, 1)  # (out_channels, N)
            destination[prefix + 'codes'] = pack_codes(rows, self.num_bits)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        packed = state_dict.get(prefix + 'codes')
        if self.quantized and packed is not None:
            geometry = self.geometry
            rows = unpack_codes(packed, self.num_bits, geometry.inputs_per_output)
            rows = rows.view(geometry.groups, -1, geometry.inputs_per_output)
            state_dict = {**state_dict, prefix + 'codes': rows_to_weight(rows, geometry)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.quantized:
            self._refresh()

    def _set_qparams(self, side: str, qparams: QParams | None) -> None:
        """Makes state of the quantization of the ``'input'`` or ``'output'``."""
        self._ranges.pop(side, None)
        self._buffers.pop(f'{side}_max', None)
        if qparams is not None:
            device = self.weight.device
            self._set_buffer(f'{side}_scale', qparams.scale.to(device, torch.float32))
            self._set_buffer(f'{side}_zero_point', qparams.zero_point.to(device, torch.int32))
            self._ranges[side] = (qparams.quant_min, qparams.quant_max, qparams.unit)
            if qparams.channel_max is not None:
                self._set_buffer(f'{side}_max', qparams.channel_max.to(device, torch.uint8))

    def _set_buffer(self, name: str, value: Tensor) -> None:
        self._buffers.pop(name, None)
        self.register_buffer(name, value)

    def _refresh(self) -> None:
        """Derives what ``forward`` uses from the state: the weight on the product's scale."""
        rows = weight_rows(self.codes, self.geometry).to(torch.float32)
        rows = rows * self.weight_scale.view(rows.shape[0], rows.shape[1], 1)
        if 'weight_offset' in self._buffers:
            rows += self.weight_offset.view(rows.shape[0], rows.shape[1], 1)
        self._parameters.pop('weight', None)
        self._buffers.pop('weight', None)
        self.register_buffer('weight', rows_to_weight(rows, self.geometry), persistent=False)
        self._refresh_qparams()

    def _refresh_qparams(self) -> None:
        found = {side: QParams(self._buffers[f'{side}_scale'],
                               self._buffers[f'{side}_zero_point'], quant_min, quant_max,
                               unit=unit, channel_max=self._buffers.get(f'{side}_max'))
                 for side, (quant_min, quant_max, unit) in self._ranges.items()}
        self.qparams, self.output_qparams = found.get('input'), found.get('output')

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        if self._kept is not None:
            self._kept = self._kept.map(fn)
        self._refresh_qparams()
        return self

    def extra_repr(self) -> str:
        geometry = self.geometry
        state = 'quantized' if self.quantized else 'float'
        return (f'{geometry.kind}, {geometry.in_channels}, {geometry.out_channels}, '
                f'kernel_size={geometry.kernel_size}, groups={geometry.groups}, {state}')


class SteppedLayer(nn.Module):
    """A quantized layer between steps that the float layer's class takes in its own call.

    What is asked of the float layer is answered by the quantized one.

    Args:
        before, after: The steps; empty ones leave the tensor as it is.
        layer: The quantized layer.
    """

    def __init__(self, before: Steps, layer: QuantizedLayer, after: Steps):
        super().__init__()
        self.before, self.layer, self.after = before, layer, after
        self.register_forward_pre_hook(must_be_called)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(self.layer(self.before(input)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'layer':
                raise
            return getattr(self.layer, name)


def layer_of_row(row: dict[str, Any], declared: LayerGeometry, weight: Tensor,
                 bias: Tensor | None) -> QuantizedLayer:
    """Makes the layer that a row of ``plan_row`` describes, ready for its state.

    Args:
        row: From a checkpoint.
        declared: What the attributes of the float layer say.
        weight, bias: Of the float layer.

    Raises:
        ValueError: The row is of another layer; says where they differ.
    """
    if 'class_geometry' not in row:
        layer = QuantizedLayer(declared, weight, bias)
    else:
        found = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in row['geometry'].items()}
        layer = QuantizedLayer(LayerGeometry(
            declared.kind, declared.in_channels, declared.out_channels,
            kernel_size=declared.kernel_size, **found), weight, bias, declared)
    layer.expect(row)
    return layer


def _unusual(geometry: LayerGeometry) -> dict[str, Any]:
    """What of a geometry is neither its default nor told by the weight's shape, as JSON has it."""
    return {item.name: list(value) if isinstance(value, tuple) else value
            for item in dataclasses.fields(geometry)
            if item.default is not dataclasses.MISSING and item.name != 'kernel_size'
            and (value := getattr(geometry, item.name)) != item.default}


def must_be_called(module: nn.Module, args: tuple) -> None:
    """A hook that does nothing: parents with a fused path that reads the weights of their layers
    instead of calling them (``nn.TransformerEncoderLayer``) leave it where there are hooks."""
