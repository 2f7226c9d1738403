"""Parts of layers of several widths in a checkpoint: one tensor a width, whatever the layers.

A tensor a layer and width would cost more in the header than in the payload. So a file has the
parts of all layers one after another, in the order of ``description.layers``: ``*.narrowest`` and
``*.bits_<n>``. ``width_state`` says what a part is.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.export.packed_block import FORMAT, OF_WIDTHS
from mmbitsplit.models.layers.layer_state import (
    geometry_in_row,
    plan_row,
    solution_from_file,
    solution_to_file,
)
from mmbitsplit.models.layers.width_state import (
    FURTHER,
    NARROWEST,
    has_few_bits,
    is_part,
    part_bytes,
    part_names,
)

JOINED = '*.'


def joined_name(width: int | None) -> str:
    """Name of the tensor of all parts of a width; ``None`` for the narrowest of each layer."""
    return JOINED + (NARROWEST if width is None else f'{FURTHER}{width}')


def further_widths(description: Mapping[str, Any]) -> list[int]:
    """Widths that some layer has beside its narrowest, rising."""
    return sorted({width for _, row in layers_with_widths(description)
                   for width in row['widths']['weight'][1:]})


def format_of(state: Mapping[str, Tensor]) -> int:
    """The format version that parts of layers of several widths need; of what was read, its own."""
    new = any(has_few_bits(value) for key, value in state.items()
              if is_part(key.rpartition('.')[2]))
    return FORMAT if new else OF_WIDTHS


def width_bytes(state: Mapping[str, Tensor]) -> dict[int, int]:
    """What each width takes in a file, by width; the narrowest of each layer under 0.

    Args:
        state: With the parts of layers of several widths; empty is what is given without.
    """
    sizes: dict[int, int] = {}
    for key, value in state.items():
        name = key.rpartition('.')[2]
        if is_part(name):
            width = 0 if name == NARROWEST else int(name.removeprefix(FURTHER))
            sizes[width] = sizes.get(width, 0) + value.numel()
    return dict(sorted(sizes.items()))


def layers_with_widths(description: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the layers of several widths, by where their tensors lie below the model's name."""
    for name, row in description['layers'].items():
        if 'widths' in row:
            yield name + ('.layer' if 'before' in row else ''), row


def join_parts(state: Mapping[str, Tensor], description: Mapping[str, Any],
               ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Puts the parts of all layers together, a tensor a width.

    Args:
        state: Tensors by name.
        description: From ``models.describe``.

    Returns:
        The state, and fields of the header that ``split_parts`` needs: ``prefix`` of the layers'
        names in the state, ``aliases`` (layers that stand in the model under a second name).

    Raises:
        ValueError: A layer of the description has no parts, or another has some of its own.
    """
    rows = dict(layers_with_widths(description))
    prefix = next((prefix for prefix in ('model.', '')
                   if f'{prefix}{next(iter(rows))}.{NARROWEST}' in state), None)
    if prefix is None:
        raise ValueError(f"The state has no '{NARROWEST}' of layer '{next(iter(rows))}', which the "
                         'description gives several widths.')
    of_layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        place, _, name = key.rpartition('.')
        if is_part(name):
            of_layers.setdefault(place, {})[name] = value
    joined = {key: value for key, value in state.items()
              if not is_part(key.rpartition('.')[2])}
    blocks: dict[str, list[Tensor]] = {joined_name(None): []}
    blocks |= {joined_name(width): [] for width in further_widths(description)}
    for stem, row in rows.items():
        for name in part_names(row['widths']['weight']):
            blocks[JOINED + name].append(of_layers[prefix + stem][name].cpu())
    joined |= {name: torch.cat(parts) for name, parts in blocks.items()}
    known = [prefix + stem for stem in rows]
    aliases = {place: _alias(place, parts, {name: of_layers[name] for name in known})
               for place, parts in of_layers.items() if place not in known}
    return joined, {'prefix': prefix, **({'aliases': aliases} if aliases else {})}


def split_parts(state: Mapping[str, Tensor], description: Mapping[str, Any],
                fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inverse of ``join_parts``; of widths that the state lacks, no part is made.

    Raises:
        ValueError: A part has not the bytes that it must have.
    """
    parted = {key: value for key, value in state.items() if not key.startswith(JOINED)}
    ends = dict.fromkeys((key for key in state if key.startswith(JOINED)), 0)
    for stem, row in layers_with_widths(description):
        place = fields['prefix'] + stem
        channels = parted[f'{place}.weight_scale'].numel()
        bias = parted.get(f'{place}.bias')
        for name in part_names(row['widths']['weight']):
            whole = state.get(JOINED + name)
            if whole is None:
                continue
            begin = ends[JOINED + name]
            try:
                size = part_bytes(name, whole[begin:], row, channels,
                                  0 if bias is None else bias.element_size())
            except ValueError as error:
                raise ValueError(f"Layer '{stem}': {error}") from error
            parted[f'{place}.{name}'] = whole[begin:begin + size].clone()
            ends[JOINED + name] += size
    left = [name for name, end in ends.items() if end < state[name].numel()]
    if left:
        raise ValueError(f"'{left[0]}' has {state[left[0]].numel() - ends[left[0]]} bytes that "
                         'belong to no layer.')
    for alias, place in fields.get('aliases', {}).items():
        parted |= {f'{alias}.{key.rpartition(".")[2]}': value for key, value in
                   list(parted.items())
                   if key.rpartition('.')[0] == place and is_part(key.rpartition('.')[2])}
    return parted


def fold_rows(description: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The description with a number instead of each row's ``widths``, and what they stand for."""
    kinds: list[Any] = []
    layers = {}
    for name, row in description['layers'].items():
        if 'widths' in row:
            if row['widths'] not in kinds:
                kinds.append(row['widths'])
            row = {**row, 'widths': kinds.index(row['widths'])}
        layers[name] = row
    return {**description, 'layers': layers}, kinds


def unfold_rows(description: Mapping[str, Any], kinds: list[Any]) -> dict[str, Any]:
    """Inverse of ``fold_rows``."""
    return {**description, 'layers': {
        name: {**row, 'widths': json.loads(json.dumps(kinds[row['widths']]))}
        if 'widths' in row else row for name, row in description['layers'].items()}}


def with_widths_up_to(state: Mapping[str, Tensor], description: Mapping[str, Any],
                      fields: Mapping[str, Any], most: int,
                      ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and description of the same model without widths of the weight beyond one.

    A layer keeps its narrowest in any case. Codes, scales and biases of what is kept are the same,
    bit for bit.

    Args:
        state: With the parts of each layer; those of wider widths may be missing.
        description: Of all widths.
        fields: From ``join_parts``.
        most: The widest to keep.
    """
    state, layers = dict(state), dict(description['layers'])
    of_row = {id(row): name for name, row in layers.items()}
    places = {}
    for stem, row in layers_with_widths(description):
        weight = row['widths']['weight']
        kept = [width for width in weight if width <= max(most, weight[0])]
        if kept == weight:
            continue
        place = fields['prefix'] + stem
        places[place] = _restrict(state, place, row, kept)
        layers[of_row[id(row)]] = places[place]
    for alias, place in fields.get('aliases', {}).items():
        if place in places:
            for key in [key for key in state if key.rpartition('.')[0] == alias]:
                del state[key]
            state |= {f'{alias}.{key.rpartition(".")[2]}': value
                      for key, value in list(state.items()) if key.rpartition('.')[0] == place}
    return state, {**description, 'layers': layers}


def _restrict(state: dict[str, Tensor], place: str, row: Mapping[str, Any], kept: list[int],
              ) -> dict[str, Any]:
    """Replaces a layer's tensors by those of some widths; returns its row."""
    geometry = geometry_in_row(row)
    own = {key.rpartition('.')[2]: state[key] for key in state
           if key.rpartition('.')[0] == place}
    solution = solution_from_file(own, row, geometry, kept)
    made = solution_to_file(solution, geometry)
    for name in own:
        if name not in ('norm_scale', 'norm_shift'):
            del state[f'{place}.{name}']
    state |= {f'{place}.{name}': value for name, value in made.items()}
    changed = plan_row(solution, geometry)
    again = {name: changed[name] for name in ('num_bits', 'bias', 'weight_offset', 'widths')
             if name in changed}
    return {**{name: value for name, value in row.items()
               if name not in ('weight_offset', 'widths')}, **again}


def _alias(place: str, parts: Mapping[str, Tensor], known: Mapping[str, Mapping[str, Tensor]],
           ) -> str:
    """The layer of the description that a second name stands for."""
    for name, others in known.items():
        if parts.keys() == others.keys() and all(
                torch.equal(value, others[part]) for part, value in parts.items()):
            return name
    raise ValueError(f"'{place}' has parts of several widths, and the description names no such "
                     'layer.')
