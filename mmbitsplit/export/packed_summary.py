"""What a packed checkpoint holds, layer by layer, without the model."""

import math
from collections.abc import Mapping
from typing import Any

from mmbitsplit.export.packed_checkpoint import PackedCheckpoint
from mmbitsplit.models.layers.layer_state import code_bits, input_mode
from mmbitsplit.models.layers.width_state import NARROWEST
from mmbitsplit.structures.products import SIDES


def summarise(checkpoint: PackedCheckpoint, file_bytes: int) -> dict[str, Any]:
    """Returns plan, sizes and origin in plain values, ready for JSON.

    Args:
        checkpoint: As read.
        file_bytes: Size of its file.

    Returns:
        ``layers`` (a row a layer: ``name``, ``kind``, ``shape``, ``weight_bits``,
        ``input_bits``, ``input_mode``, ``output_bits``, ``payload_bytes``; bits are ``None`` for
        float), ``float_leftovers`` (tensors of no quantized layer), ``streams`` (``name`` and
        ``num_bits``, where there are any, and ``stream_widths`` of several), ``width_bytes`` (of
        layers of several widths, whose rows have ``weight_widths`` and ``input_widths`` too: bytes
        by width, ``'narrowest'`` first, and ``lacking_widths`` whose residual files were not
        given), ``products`` (``name``, ``a_bits``, ``b_bits``, and ``a_widths``, ``b_widths`` where
        there are several, likewise), ``multiplications`` (shares, of files that say it) and totals.
        ``payload_bytes`` of a row count what is stored once for several layers in each of them;
        the total counts it once.
    """
    sizes = {name: value.numel() * value.element_size()
             for name, value in checkpoint.state.items()}
    rows = []
    # A layer that stands in the model under a second name too has its tensors under both.
    of_layers = {key for key in sizes for codes in ('codes', NARROWEST)
                 if f'{key.rpartition(".")[0]}.{codes}' in sizes}
    description = checkpoint.description
    for name, plan in (*description.get('embeddings', {}).items(),
                       *description['layers'].items()):
        own = [key for key in sizes if key.rpartition('.')[0] == f'model.{name}']
        rows.append({'name': name, 'kind': plan['kind'], 'shape': list(plan['shape']),
                     'weight_bits': plan['num_bits'], 'input_bits': code_bits(plan['input']),
                     'input_mode': input_mode(plan['input']),
                     'output_bits': code_bits(plan.get('output')), **_widths(plan),
                     'payload_bytes': sum(sizes[key] for key in own)})
    streams = [{'name': name, 'num_bits': code_bits(limits), **_stream_widths(limits)}
               for name, limits in checkpoint.description.get('streams', {}).items()]
    products = [{'name': name, **{f'{side}_bits': _side_bits(row.get(side)) for side in SIDES},
                 **_side_widths(row)}
                for name, row in checkpoint.description.get('products', {}).items()]
    weights = sum(math.prod(row['shape']) for row in rows)
    meta = checkpoint.meta
    return {
        'format_version': checkpoint.version, 'layers': rows,
        **({'width_bytes': {str(width or NARROWEST): size
                            for width, size in checkpoint.width_bytes.items()},
            'lacking_widths': list(checkpoint.lacking)} if checkpoint.width_bytes else {}),
        **({'streams': streams} if streams else {}),
        **({'products': products} if products else {}),
        **{name: meta[name] for name in ('multiplications',) if meta.get(name)},
        'float_leftovers': {name: size for name, size in sizes.items() if name not in of_layers},
        'folded_batch_norms': len(checkpoint.description['folded']),
        'weights': weights,
        'mean_weight_bits': sum(math.prod(row['shape']) * row['weight_bits'] for row in rows)
        / max(1, weights),
        'payload_bytes': checkpoint.payload_bytes, 'file_bytes': file_bytes,
        'float_checkpoint': meta.get('float_checkpoint'),
        'float_checkpoint_sha256': meta.get('float_checkpoint_sha256'),
        'calibration_images': len((meta.get('calibration') or {}).get('image_ids', ())),
        'calibration_seed': (meta.get('calibration') or {}).get('seed'),
        'versions': meta.get('versions') or {},
    }


def _widths(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """Those of a layer that has several."""
    widths = row.get('widths', {})
    return {f'{side}_widths': list(widths[side]) for side in ('weight', 'input', 'output')
            if len(widths.get(side, ())) > 1}


def _side_bits(side: Mapping[str, Any] | None) -> int | None:
    """Width of the codes of an input of a product, ``None`` for a float one."""
    return side['log2'] if side is not None and 'log2' in side else code_bits(side)


def _side_widths(row: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Those of a product that has several."""
    return {f'{side}_widths': [_side_bits(one) for one in (*reversed(narrower), row[side])]
            for side in SIDES if (narrower := (row.get(side) or {}).get('narrower'))}


def _stream_widths(limits: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Those of a residual stream that has several."""
    found = [code_bits(dict(zip(('quant_min', 'quant_max'), own)))
             for own in reversed(limits.get('narrower', ()))]
    return {'stream_widths': [*found, code_bits(limits)]} if found else {}
