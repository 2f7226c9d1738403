"""The part of a run's page that is of one of several widths, which a slider chooses."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.report.layer_figures import bits_text
from mmbitsplit.report.page import Table
from mmbitsplit.report.tables import figure_of, headline_metrics, unit_of

FLOAT_BITS = 32


def widths_section(results: Mapping[str, Any], layers: Sequence[Mapping[str, Any]],
                   ) -> dict[str, Any] | None:
    """What the page shows of several widths; ``None`` of a model of one.

    Args:
        results: ``results.json``.
        layers: Rows of ``layers.json``.

    Returns:
        ``rows`` (widths, rising, with ``quantized`` and ``drop`` where they are known), ``names``
        and ``said`` of each (its figures in words), ``table``, ``evaluated``, ``of_units``
        (whether errors are those of whole units).
    """
    rows = _rows(results, layers)
    if len(rows) < 2:
        return None
    names = [bits_text(row) for row in rows]
    metrics = [name for name in headline_metrics(results) if name in results['float']]
    header, cells, said = ['width'], [[name] for name in names], [[] for _ in names]
    for metric in metrics:
        unit = unit_of(metric)
        header += [f'{metric}, {unit}' if unit else metric, 'drop']
        for row, line, words in zip(rows, cells, said):
            figures = [figure_of(metric, (row.get(key) or {}).get(metric))
                       for key in ('quantized', 'drop')]
            line += figures
            if figures[0] != '–':
                words.append(f'{metric} {figures[0]}, drop {figures[1]}')
    header += ['largest error', 'of the layer']
    for row, line in zip(rows, cells):
        worst = max((at_width(layer, row) for layer in layers), key=lambda one: one['error'],
                    default=None)
        line += ['–', '–'] if worst is None else [f"{worst['error']:.2e}", worst['name']]
    last = len(header) - 1
    return {'rows': rows, 'names': names, 'evaluated': 'widths' in results,
            'said': ['; '.join(words) for words in said],
            'of_units': any(one['of'] == 'unit' for layer in layers
                            for one in layer.get('width_errors') or ()),
            'table': Table(header, cells, numeric=range(1, last), paths=(last,),
                           classes='widths')}


def at_width(layer: Mapping[str, Any], widths: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a layer with its bits and errors at one of its widths.

    Args:
        layer: Of ``layers.json``. One of a single width is given back as it is.
        widths: ``weight_bits`` and ``activation_bits`` of the whole model.
    """
    found = layer.get('width_errors') or ()
    known = {one['weight_bits'] for one in found}
    own = [one for one in found
           if len(known) == 1 or one['weight_bits'] == widths['weight_bits']]
    if not own:
        return dict(layer)
    asked = widths['activation_bits'] or FLOAT_BITS
    nearest = min(own, key=lambda one: abs((one['activation_bits'] or FLOAT_BITS) - asked))
    return {**layer, **nearest}


def _rows(results: Mapping[str, Any], layers: Sequence[Mapping[str, Any]],
          ) -> list[dict[str, Any]]:
    """Widths of the model: as they were evaluated, or those that its layers were solved at."""
    if 'widths' in results:
        return list(results['widths'])
    rows = [{'weight_bits': weight, 'activation_bits': None if bits == FLOAT_BITS else bits}
            for weight, bits in sorted({
                (one['weight_bits'], one['activation_bits'] or FLOAT_BITS)
                for layer in layers for one in layer.get('width_errors') or ()})]
    if rows:  # the model was evaluated at its widest
        rows[-1] |= {'quantized': results['quantized'], 'drop': results['drop']}
    return rows
