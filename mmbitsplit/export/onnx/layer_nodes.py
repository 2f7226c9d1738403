"""Writes one call of a quantized layer as standard ONNX nodes.

    x -> Div(input scales) -> QuantizeLinear(1) -> DequantizeLinear(1) -> Conv
    codes -> DequantizeLinear(weight scale) -> Conv

The product sees the input's codes less zero point, as the layer itself does, because ECAQ and
per-tensor scales are in the weight scales already. Where zero points differ by channel, integer
kernels, which know one, are given the codes themselves: what the zero points add is one number an
output channel and goes into the bias. It is the same at borders, because the real zero is padded
before the quantizer. Codes stay inside the layer's bits; how many the file takes for them says
``storage``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from mmbitsplit.export.onnx.fold import LayerCall, codes_as_they_are, one_zero_point
from mmbitsplit.export.onnx.int32_bias import with_int32_bias
from mmbitsplit.export.onnx.node_writer import Nodes, NodeWriter
from mmbitsplit.export.onnx.stored_weight import StoredWeight, is_midrise, stored_weight
from mmbitsplit.functional import channel_dim, explicit_padding, per_input, weight_rows
from mmbitsplit.functional.packing import onnx_bits
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import LayerGeometry, QParams

PAD_MODES = {'reflect': 'reflect', 'replicate': 'edge'}


class LayerWriter(NodeWriter):
    """Writes calls into a graph; a layer's tensors are stored once however often it is called.

    Args:
        graph: ``onnx_ir.Graph`` that gets the initializers.
        format: Of the file; see ``storage``.
        divide_first: Whether scales a channel are an operator of their own before a quantizer
            of one scale; see ``_product_input``.
    """

    def __init__(self, graph: Any, format: str, divide_first: bool):
        super().__init__(graph)
        self.format, self.divide_first = format, divide_first
        self.rank, self.in_integers = 0, True  # of the call now written

    def write(self, call: LayerCall, *, folded_input: bool = False,
              reader: LayerCall | None = None, in_integers: bool = True) -> Nodes:
        """Writes the nodes of a call.

        Args:
            call: The call.
            folded_input: Whether the layer before took this layer's input scales.
            reader: The call whose input scales this one takes, if any.
            in_integers: Whether onnxruntime can compute it in integers. Where it cannot, it
                would dequantize the weight in every run; as Cast and Mul it does so once.
        """
        self.nodes, self.prefix = [], call.node.outputs[0].name
        self.rank, self.in_integers = len(call.node.inputs[0].shape), in_integers
        layer, geometry = call.layer, call.layer.geometry
        _check_standard(call.name, layer)
        x = self._pad(call.node.inputs[0], call)
        if layer.qparams is not None:
            x = self._product_input(x, call, folded_input)
        weight, bias = self._weight_and_bias(call, reader)
        y = self._operator(x, weight, bias, call)
        after = layer.output_qparams
        if after is not None:
            y = self._round_trip(y, after, f'{call.name}.output',
                                 channel_dim(geometry) % self.rank)
        return Nodes(self.nodes, y)

    def write_stream(self, node: Any, name: str, qparams: QParams) -> Nodes:
        """Writes what rounds a residual stream.

        Args:
            node: That stands for it.
            name: Of the module that gives the stream.
            qparams: One scale for the whole tensor.
        """
        self.nodes, self.prefix = [], node.outputs[0].name
        return Nodes(self.nodes, self._round_trip(node.inputs[0], qparams, f'{name}.stream', 0))

    def _product_input(self, x: Any, call: LayerCall, folded: bool) -> Any:
        """Codes less zero point (unit inputs) or dequantized values, as floats."""
        qparams = call.layer.qparams
        axis = channel_dim(call.layer.geometry) % self.rank
        name = f'{call.name}.input'
        if not qparams.unit:
            return self._round_trip(x, qparams, name, axis)
        points = _zero_points(qparams)
        same_points = one_zero_point(qparams)
        # QuantizeLinear with a scale a channel is what onnxruntime computes fastest, but for three
        # cases. Between integer layers alone it lays channels last, where that takes
        # longer than all the rest; there it also merges the quantizer with an activation function
        # before it, for which it knows one scale; and signed codes it takes from pairs of equal
        # scales only.
        divide = qparams.scale.numel() > 1 and (self.divide_first or qparams.quant_min < 0)
        shifted = codes_as_they_are(call.layer)
        point = np.zeros_like(points[0]) if shifted else points[0]
        if folded or divide:
            x = x if folded else self._divide(x, qparams, name, axis)
            if folded or same_points:
                codes = self._quantize(x, np.float32(1), point, qparams, f'{name}.unit', axis)
            else:
                codes = self._quantize(x, np.ones(points.shape, np.float32), points, qparams,
                                       f'{name}.points', axis)
        else:
            codes = self._quantize(x, *_scales(qparams), qparams, name, axis)
        if self.in_integers and (same_points or shifted):
            return self._dequantize(codes, np.float32(1), point, f'{name}.unit', axis)
        # A scale a channel, though all are 1: beside one scale and a weight in float onnxruntime
        # takes it on itself to quantize the weight.
        points = np.broadcast_to(point if shifted else points, call.layer.geometry.in_channels)
        return self._dequantize(codes, np.ones(points.shape, np.float32), points,
                                f'{name}.units', axis)

    def _divide(self, x: Any, qparams: QParams, name: str, axis: int) -> Any:
        shape = [-1 if dim == axis else 1 for dim in range(self.rank)]
        scale = qparams.scale.float().cpu().numpy().reshape(shape)
        return self._node('Div', [x, self._store(f'{name}.channel_scale', scale)])

    def _round_trip(self, x: Any, qparams: QParams, name: str, axis: int) -> Any:
        """QuantizeLinear and DequantizeLinear with the same scales."""
        scale, zero_point = _scales(qparams)
        codes = self._quantize(x, scale, zero_point, qparams, name, axis)
        return self._dequantize(codes, scale, zero_point, name, axis)

    def _weight_and_bias(self, call: LayerCall, reader: LayerCall | None) -> tuple[Any, Any]:
        layer, geometry = call.layer, call.layer.geometry
        stored = stored_weight(layer)
        scale, codes = stored.scale, stored.codes
        bias, name = layer.product_bias, call.name
        bias = None if bias is None else bias.detach().double().cpu().numpy()
        if reader is not None:
            factor = reader.layer.qparams.scale.double().cpu().numpy()
            scale, bias = scale / factor, None if bias is None else bias / factor
            if codes_as_they_are(reader.layer):
                points = reader.layer.qparams.zero_point.double().cpu().numpy()
                bias = points if bias is None else bias + points
            name = f'{call.name}.for.{reader.name}'
        if bias is not None and not stored.half:
            codes, scale = with_int32_bias(codes, scale, bias, geometry)
        if codes_as_they_are(layer):
            shift = scale * _zero_point_sums(codes, layer, stored.half)
            bias = -shift if bias is None else bias - shift
        codes_name = call.name if codes is stored.codes else f'{name}.coarse'
        weight = self._dequantized_weight(call, replace(
            stored, codes=codes, scale=scale.astype(np.float32)), codes_name, name)
        return weight, None if bias is None else self._store(f'{name}.bias',
                                                            bias.astype(np.float32))

    def _dequantized_weight(self, call: LayerCall, weight: StoredWeight, codes_name: str,
                            scale_name: str) -> Any:
        geometry, array, scale = call.layer.geometry, weight.codes.cpu().numpy(), weight.scale
        axis = 0 if geometry.kind == 'conv2d' else 1
        if geometry.kind == 'linear':
            array = array.T  # as MatMul wants it
        dtype = self.ir.DataType.INT4 if onnx_bits(weight.num_bits, self.format) == 4 \
            else self.ir.DataType.INT8
        stored = self._store(f'{codes_name}.codes', array, dtype)
        if geometry.kind == 'conv_transpose2d' and geometry.groups > 1:
            # A channel of each group shares an index of axis 1: no axis has the scales.
            factor = _per_weight_row(scale, geometry)
        elif not self.in_integers or weight.half:
            factor = scale.reshape([-1 if dim == axis else 1 for dim in range(array.ndim)])
        else:
            zeros = self._store(f'{codes_name}.zero', np.zeros(scale.shape, np.int8), dtype)
            return self._node('DequantizeLinear', [
                stored, self._store(f'{scale_name}.weight_scale', scale), zeros], axis=axis)
        real = self._node('Cast', [stored], to=int(self.ir.DataType.FLOAT))
        real = self._node('Mul', [real, self._store(f'{scale_name}.weight_factor', factor)])
        return real if not weight.half else self._node(
            'Add', [real, self._store(f'{scale_name}.weight_offset', factor / 2)])

    def _operator(self, x: Any, weight: Any, bias: Any, call: LayerCall) -> Any:
        geometry = call.layer.geometry
        if geometry.kind == 'linear':
            # Neither Gemm nor MatMul and Add, which onnxruntime makes a Gemm of: it keeps that in
            # float where no quantizer follows.
            y = self._node('MatMul', [x, weight])
            return y if bias is None else self._node('Sum', [y, bias])
        transposed = geometry.kind == 'conv_transpose2d'
        return self._node(
            'ConvTranspose' if transposed else 'Conv', [x, weight, *_given(bias)],
            kernel_shape=geometry.kernel_size, strides=geometry.stride,
            **_padding(call), dilations=geometry.dilation, group=geometry.groups,
            output_padding=geometry.output_padding if transposed else None)

    def _pad(self, x: Any, call: LayerCall) -> Any:
        """Padding that repeats inputs; before the quantizer is as good as behind it.

        Zeros too, where the operator's own would not mean zero.
        """
        x = self._pad_repeating(x, call)
        if not codes_as_they_are(call.layer):
            return x
        pads = _zero_pads(call)
        if pads is None:
            amounts = self._same_padding(x, call.layer.geometry)
        elif any(pads):
            top, left, bottom, right = pads
            amounts = self._store('pads.' + '.'.join(map(str, pads)),
                                  np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        else:
            return x
        return self._node('Pad', [x, amounts], mode='constant')

    def _same_padding(self, x: Any, geometry: LayerGeometry) -> Any:
        """``functional.explicit_padding`` as nodes, for sizes that only the runtime knows."""
        spans = [dilation * (taps - 1) + 1
                 for dilation, taps in zip(geometry.dilation, geometry.kernel_size)]

        def pair(values: Sequence[int]) -> Any:
            return self._store('pair.' + '.'.join(map(str, values)), np.array(values, np.int64))

        size, stride = self._node('Shape', [x], start=2, end=4), pair(geometry.stride)
        outputs = self._node('Div', [
            self._node('Add', [size, pair([step - 1 for step in geometry.stride])]), stride])
        covered = self._node('Add', [self._node('Mul', [
            self._node('Sub', [outputs, pair([1, 1])]), stride]), pair(spans)])
        total = self._node('Max', [self._node('Sub', [covered, size]), pair([0, 0])])
        less = self._node('Div', [total, pair([2, 2])])
        more = self._node('Sub', [total, less])
        ends = [less, more] if geometry.auto_padding == 'same_upper' else [more, less]
        return self._node('Concat', [pair([0, 0]), ends[0], pair([0, 0]), ends[1]], axis=0)

    def _pad_repeating(self, x: Any, call: LayerCall) -> Any:
        geometry = call.layer.geometry
        if geometry.pre_padding_mode == 'zeros':
            return x
        left, right, top, bottom = geometry.pre_padding
        if geometry.pre_padding_mode == 'circular':  # OpenVINO has no Pad that wraps
            return self._wrap(self._wrap(x, 2, top, bottom), 3, left, right)
        amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        return self._node('Pad', [x, self._store(f'{call.name}.pads', amounts)],
                          mode=PAD_MODES[geometry.pre_padding_mode])

    def _wrap(self, x: Any, axis: int, before: int, after: int) -> Any:
        """The end of an axis again before its start, and the start behind the end."""
        parts = [x]
        if before:
            parts.insert(0, self._slice(x, axis, -before, np.iinfo(np.int64).max))
        if after:
            parts.append(self._slice(x, axis, 0, after))
        return self._node('Concat', parts, axis=axis) if len(parts) > 1 else x

    def _slice(self, x: Any, axis: int, start: int, end: int) -> Any:
        places = [self._store(f'number.{value}', np.array([value], np.int64))
                  for value in (start, end, axis)]
        return self._node('Slice', [x, *places])


def _zero_pads(call: LayerCall) -> list[int] | None:
    """Zeros around a convolution's input: (top, left, bottom, right).

    ``None`` where they follow from a size that only the runtime knows.
    """
    geometry, sizes = call.layer.geometry, call.node.inputs[0].shape[2:]
    if geometry.kind == 'linear':
        return [0] * 4
    if geometry.auto_padding != 'none':
        if not all(isinstance(size, int) for size in sizes):
            return None
        geometry = explicit_padding(geometry, (1, geometry.in_channels, *sizes))
    top, left = geometry.padding
    pads = [top, left, top, left]
    if geometry.pre_padding_mode == 'zeros':  # uneven; the others are nodes of their own
        before_w, after_w, before_h, after_h = geometry.pre_padding
        pads = [a + b for a, b in zip(pads, (before_h, before_w, after_h, after_w))]
    return pads


def _padding(call: LayerCall) -> dict[str, Any]:
    """The attributes of a convolution that say how zeros surround its input."""
    if codes_as_they_are(call.layer):
        return {'pads': [0] * 4}  # they are there already
    pads = _zero_pads(call)
    if pads is None:  # the runtime works it out
        return {'auto_pad': call.layer.geometry.auto_padding.upper()}
    return {'pads': pads}


def _check_standard(name: str, layer: QuantizedLayer) -> None:
    """Raises ``ValueError`` for what ONNX's quantizers and one integer product cannot say."""
    what = [text for text, found in (
        ("an offset of every output channel's weights",
         layer.weight_offset is not None and not is_midrise(layer)),
        ('input channels of different widths',
         layer.qparams is not None and layer.qparams.channel_max is not None)) if found]
    if what:
        raise ValueError(f"Layer '{name}' has {' and '.join(what)}, which ONNX's operators cannot "
                         'compute in integers. Quantize with a method that has one scale a channel '
                         "and no more, such as method=dict(type='BitSplit').")


def _zero_point_sums(codes: Tensor, layer: QuantizedLayer, half: bool) -> np.ndarray:
    """What the input's zero points add to each output channel, in steps: (out_channels,).

    Args:
        codes: As stored.
        layer: Theirs.
        half: See ``StoredWeight``.
    """
    rows = weight_rows(codes, layer.geometry).double() + 0.5 * half  # (G, M, N)
    points = per_input(layer.qparams.zero_point.double(), layer.geometry).unsqueeze(-1)
    return (rows @ points.to(rows)).flatten().cpu().numpy()


def _given(bias: Any) -> list[Any]:
    return [] if bias is None else [bias]


def _scales(qparams: QParams) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as QuantizeLinear wants them: both scalars or both (C,)."""
    scale = qparams.scale.float().cpu().numpy()
    zero_point = _zero_points(qparams)
    if scale.size == 1 and zero_point.size == 1:
        return scale[0], zero_point[0]
    size = max(scale.size, zero_point.size)
    return (np.broadcast_to(scale, size), np.broadcast_to(zero_point, size))


def _zero_points(qparams: QParams) -> np.ndarray:
    """(C,) or (1,) in the integer type that holds the codes: uint8, or int8 for signed ones."""
    dtype = np.uint8 if qparams.quant_min >= 0 else np.int8
    return qparams.zero_point.cpu().numpy().astype(dtype)


def _per_weight_row(scale: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """Scales of a grouped transposed convolution, spread over its weight: (C_in, M, 1, 1)."""
    groups = geometry.groups
    rows = scale.reshape(groups, 1, -1)  # (G, 1, M)
    rows = np.broadcast_to(rows, (groups, geometry.in_channels // groups, rows.shape[2]))
    return rows.reshape(geometry.in_channels, -1, 1, 1)
