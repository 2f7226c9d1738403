"""A plan as plain JSON that people can read, edit and give back: ``plan.json``.

One line a layer, with its widths; the settings that most layers share stand once, above them. What
a plan given back leaves out is as the request says, so that editing a width is enough.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbitsplit.structures.given_plan import AS_REQUESTED, PLAN_FORMAT, PLAN_SETTINGS, PlanSpec
from mmbitsplit.structures.options import from_mapping
from mmbitsplit.structures.plan import BitPlan
from mmbitsplit.structures.spec import ActivationSpec, WeightSpec

PLAN = 'plan.json'
PRODUCT = 'Product'  # the kind of a product that stays float
_TABLES = ('products', 'layers')  # a line a row


def plan_value(plan: BitPlan) -> dict[str, Any]:
    """Returns a plan as plain values, ready for JSON.

    Embeddings come first, layers in the order of execution, then those that were asked to stay in
    float, with ``weight_bits`` of ``None``. What can only stay in float is left out.
    """
    shared = {part: _most_common([_settings(getattr(layer, part), part) for layer in plan.layers])
              for part in PLAN_SETTINGS}
    rows: list[dict[str, Any]] = [
        {'name': table.name, 'weight_bits': table.weight.num_bits, 'input_bits': None,
         'output_bits': None, 'role': table.role,
         **({'weight': own} if (own := _unlike(table.weight, 'weight', shared)) else {})}
        for table in plan.embeddings]
    for layer in plan.layers:
        row = {'name': layer.name, 'weight_bits': layer.weight.num_bits,
               'input_bits': layer.activation.num_bits,
               'output_bits': None if layer.output is None else layer.output.num_bits,
               'role': layer.role}
        for part in shared:
            own = _unlike(getattr(layer, part), part, shared)
            if own:
                row[part] = own
        rows.append(row)
    rows += [{'name': part.name, 'weight_bits': None} for part in plan.kept_float
             if part.requested and part.kind != PRODUCT]
    streams = [{'name': stream.name, 'num_bits': stream.num_bits} for stream in plan.streams]
    products: list[dict[str, Any]] = [
        {'name': product.name, 'a_bits': product.a.num_bits, 'b_bits': product.b.num_bits}
        for product in plan.products]
    products += [{'name': part.name, 'a_bits': None, 'b_bits': None} for part in plan.kept_float
                 if part.requested and part.kind == PRODUCT]
    return {'format': PLAN_FORMAT, **shared, **({'streams': streams} if streams else {}),
            **({'products': products} if products else {}), 'layers': rows}


def widths_value(plan: PlanSpec) -> dict[str, Any]:
    """Returns the widths that a given plan says as plain values, ready for JSON."""
    rows = [{'name': row.name, **{
        key: bits for key in ('weight_bits', 'input_bits', 'output_bits')
        if (bits := getattr(row, key)) != AS_REQUESTED}} for row in plan.layers]
    return {'format': plan.format,
            **({'streams': [asdict(stream) for stream in plan.streams]} if plan.streams else {}),
            **({'products': [asdict(product) for product in plan.products]}
               if plan.products else {}), 'layers': rows}


def plan_text(value: Mapping[str, Any]) -> str:
    """Returns the text of ``plan.json``: JSON with a line a layer, widths one below the other.

    Args:
        value: From ``plan_value``, or of its layout.
    """
    above = [f'  {json.dumps(key)}: {json.dumps(part, ensure_ascii=False)},'
             for key, part in value.items() if key not in _TABLES]
    tables = [f'  {json.dumps(key)}: [\n{_table(value[key])}\n  ]'
              for key in _TABLES if key in value]
    return '\n'.join(['{', *above, ',\n'.join(tables), '}']) + '\n'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of JSON, a line each, names of one width."""
    names = [json.dumps(row['name'], ensure_ascii=False) for row in rows]
    width = max(map(len, names), default=0) + 1
    lines = []
    for name, row in zip(names, rows):
        rest = json.dumps({key: part for key, part in row.items() if key != 'name'},
                          ensure_ascii=False)
        lines.append(f'    {{"name": {(name + ",").ljust(width)} {rest[1:]}')
    return ',\n'.join(lines)


def read_plan(given: PlanSpec | BitPlan | Mapping[str, Any] | str | Path) -> PlanSpec:
    """Reads a plan, in whatever form it is given.

    Args:
        given: A file, its contents, or a plan.

    Raises:
        ValueError: It cannot be read or is no plan; names the file, the layer, the key and what
            is allowed.
    """
    if isinstance(given, PlanSpec):
        return given
    if isinstance(given, BitPlan):
        given = plan_value(given)
    if isinstance(given, (str, Path)):
        try:
            return from_mapping(PlanSpec, json.loads(Path(given).read_text(encoding='utf-8')),
                                'plan')
        except (OSError, ValueError) as error:  # of which json's errors are some
            reason = 'there is no such file' if isinstance(error, FileNotFoundError) \
                else str(error).rstrip('.')
            raise ValueError(f'The plan {given} cannot be read: {reason}. Give the {PLAN} of a '
                             'work directory, edited or not.') from error
    return from_mapping(PlanSpec, given, 'plan')


def _settings(options: WeightSpec | ActivationSpec, part: str) -> dict[str, Any]:
    """Settings of a weight or an activation that a plan says."""
    values = asdict(options)
    return {key: values[key] for key in PLAN_SETTINGS[part]}


def _unlike(options: WeightSpec | ActivationSpec, part: str,
            shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Those that are not what most layers share."""
    return {key: value for key, value in _settings(options, part).items()
            if shared[part].get(key, value) != value}


def _most_common(settings: list[dict[str, Any]]) -> dict[str, Any]:
    if not settings:
        return {}
    best = Counter(json.dumps(each) for each in settings).most_common(1)[0][0]
    return next(each for each in settings if json.dumps(each) == best)
