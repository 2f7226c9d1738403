"""The model card of a run: front matter that the Hugging Face Hub reads, then tables."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mmbitsplit.report.multiplications import multiplications_text
from mmbitsplit.report.tables import (
    bits_of,
    config_of,
    figure_of,
    headline_metrics,
    mean_bits_note,
    text_table,
    unit_of,
)

CARD_BEGINS = '---\nlibrary_name: "mmbitsplit"\n'
# Tasks by their names on the Hub, by what a metric's name begins with; masks before boxes.
TASKS = (('coco/segm', 'image-segmentation'), ('coco/', 'object-detection'),
         ('accuracy/', 'image-classification'), ('single-label/', 'image-classification'))
# Names of metrics on the Hub; others keep their own.
METRICS = {'coco/bbox_mAP': 'mean_average_precision', 'coco/segm_mAP': 'mean_average_precision',
           'accuracy/top1': 'accuracy'}


def model_card(results: Mapping[str, Any], layers: Mapping[str, Any], *,
               meta: Mapping[str, Any], checkpoint: str = 'quantized.pth',
               dataset: str | None = None, base_model: str | None = None,
               license: str | None = None, repo: str | None = None) -> str:
    """Returns the text of a ``README.md``.

    Args:
        results: ``results.json``.
        layers: ``layers.json``.
        meta: Of the checkpoint: float checkpoint and versions.
        checkpoint: Name of the checkpoint's file.
        dataset: What the figures were measured on; without it the front matter has no figures.
        base_model: The float model on the Hub, ``OWNER/NAME``.
        license: By the Hub's name.
        repo: Where the files will be, ``OWNER/NAME``.
    """
    # Of a path the file alone: folders are those of whoever ran it.
    config = PurePath(str(results['config'])).name.removesuffix('.py')
    name = f'{config_of({**results, "config": config})}, {bits_of(results)}'
    parts = [_front_matter(results, name, dataset, base_model, license), f'# {name}',
             _origin(results, meta, base_model), '## Figures', _figures(results),
             mean_bits_note([bits_of(results)]), '## Size', _sizes(results), '## Load it',
             _loading(results, checkpoint, repo), '## Layers', _layers(layers),
             multiplications_text(results.get('multiplications') or {},
                                  layers.get('kept_float') or ()),
             '## Made with', _made_with(results)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def task_of(results: Mapping[str, Any]) -> str | None:
    """Returns the task by the Hub's name for it; ``None`` where no metric tells it."""
    return next((task for start, task in TASKS
                 if any(metric.startswith(start) for metric in results['float'])), None)


def _front_matter(results: Mapping[str, Any], name: str, dataset: str | None,
                  base_model: str | None, license: str | None) -> str:
    task, headlines = task_of(results), [
        metric for metric in headline_metrics(results) if metric in results['quantized']]
    fields: dict[str, Any] = {'library_name': 'mmbitsplit'}
    if license:
        fields['license'] = license
    if base_model:
        fields |= {'base_model': base_model, 'base_model_relation': 'quantized'}
    if task:
        fields['pipeline_tag'] = task
    fields['tags'] = ['mmbitsplit', 'quantized', 'post-training-quantization',
                      results['method']['type']]
    fields['metrics'] = sorted({METRICS.get(metric, metric) for metric in headlines})
    if task and dataset and headlines and not results.get('untrained'):
        fields['model-index'] = [{'name': name, 'results': [{
            'task': {'type': task}, 'dataset': {'type': dataset, 'name': dataset},
            'metrics': [{'type': METRICS.get(metric, metric), 'name': metric,
                         'value': round(results['quantized'][metric], 4)}
                        for metric in headlines]}]}]
    # A value of JSON is one of YAML, in one line.
    lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in fields.items()]
    return '\n'.join(['---', *lines, '---'])


def _origin(results: Mapping[str, Any], meta: Mapping[str, Any], base_model: str | None) -> str:
    given = results['calibration']
    floats = meta.get('float_checkpoint') or 'not named'
    digest = meta.get('float_checkpoint_sha256')
    if '://' not in floats:
        floats = PurePath(floats).name
    what = f'Float model: {base_model}; its checkpoint: `{floats}`' if base_model \
        else f'Float checkpoint: `{floats}`'
    return (f'Quantized after training by mmbitsplit, method `{results["method"]["type"]}`, with '
            f'{len(given["image_ids"])} calibration images and seed {given["seed"]}. {what}'
            f'{f", sha256 `{digest}`" if digest else ""}.')


def _figures(results: Mapping[str, Any]) -> str:
    rows = []
    for metric in results['float']:
        cells = [figure_of(metric, results[side].get(metric)) for side in ('float', 'quantized')]
        drop = '–' if '–' in cells else figure_of(metric, results['drop'].get(metric))
        unit = unit_of(metric)
        rows.append([f'{metric}, {unit}' if unit else metric, *cells, drop])
    return text_table(['metric', 'float', 'quantized', 'drop'], rows)


def _sizes(results: Mapping[str, Any]) -> str:
    sizes = results['size_bytes']
    rows = [["float model's tensors", f'{sizes["float"] / 1e6:.2f}', '1.0']]
    rows += [[what, f'{sizes[key] / 1e6:.2f}', f'{sizes["float"] / sizes[key]:.1f}']
             for what, key in (('quantized tensors', 'quantized_payload'),
                               ('quantized file', 'quantized_checkpoint')) if sizes.get(key)]
    return text_table(['what', 'MB', 'times smaller'], rows)


def _loading(results: Mapping[str, Any], checkpoint: str, repo: str | None) -> str:
    extra = "'mmbitsplit[mm,hub]'" if checkpoint.endswith('.safetensors') or repo \
        else "'mmbitsplit[mm]'"
    lines = ['from mmbitsplit.apis import load_quantized', '']
    folder = "'"
    if repo:
        lines = ['from huggingface_hub import snapshot_download', *lines[:1], '',
                 f"folder = snapshot_download('{repo}')"]
        folder = "folder + '/"
    lines.append(f"model = load_quantized({folder}quantized_config.py', {folder}{checkpoint}')")
    return (f'```\npip install {extra}\n```\n\n```python\n' + '\n'.join(lines) + '\n```\n\n'
            'Tools of OpenMMLab take `quantized_config.py` and the checkpoint like any other.')


def _layers(layers: Mapping[str, Any]) -> str:
    rows = layers['layers']
    counts = Counter((row['weight_bits'], row['activation_bits']) for row in rows)
    summary = text_table(
        ['weight bits', 'input bits', 'layers'],
        [[str(weight), str(inputs or 'float'), str(number)]
         for (weight, inputs), number in sorted(
             counts.items(), key=lambda item: (item[0][0], item[0][1] or 32))])
    table = text_table(['layer', 'kind', 'weight bits', 'input bits', 'relative output error'], [
        [f'`{row["name"]}`', row['kind'], str(row['weight_bits']),
         str(row['activation_bits'] or 'float'), f'{row["error"]:.2e}'] for row in rows])
    return (f'{summary}\n\n<details><summary>Layer by layer</summary>\n\n{table}\n\n</details>'
            + _kept(layers.get('kept_float') or ()))


def _kept(kept: Sequence[Mapping[str, Any]]) -> str:
    if not kept:
        return ''
    rows = [[f'`{row["name"]}`', row['kind'], row['reason'].replace('|', r'\|')] for row in kept]
    return '\n\nLeft in float:\n\n' + text_table(['part', 'kind', 'why'], rows)


def _made_with(results: Mapping[str, Any]) -> str:
    return text_table(['package', 'version'], [
        [name, str(version)] for name, version in results['versions'].items()])
