"""The model zoo: every config of a family with what was measured of it, and its metafile."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.paper import BENCH_MODELS, BenchModel, Bits, published, published_float
from bench.paper.models import ZOO_MODELS
from bench.paper.summary import HEADINGS
from bench.stored_runs import read_runs
from mmbitsplit.report.tables import HEADLINES, bits_of, in_points, results_rows, text_table
from mmbitsplit.spelling import nearest
from mmbitsplit.version import __version__

NOTICE = '# Written by tools/update_tables.py from the configs and results/; not to be edited.\n'
NOT_RUN = 'not run'
PAPER = {'Title': 'Towards Accurate Post-training Network Quantization via Bit-Split and Stitching',
         'URL': 'https://dl.acm.org/doi/abs/10.5555/3524938.3525851'}
QDROP_PAPER = {'Title': 'QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training '
                        'Quantization',
               'URL': 'https://arxiv.org/abs/2203.05740'}
DATASETS = {'digits': 'Digits demo', 'cifar': 'CIFAR-10', 'imagenet': 'ImageNet-1k',
            'coco': 'COCO'}
# Task and the name that OpenMMLab's metafiles give a metric.
METRICS = {'accuracy/top1': ('Image Classification', 'Top 1 Accuracy'),
           'accuracy/top5': ('Image Classification', 'Top 5 Accuracy'),
           'coco/bbox_mAP': ('Object Detection', 'box AP'),
           'coco/segm_mAP': ('Instance Segmentation', 'mask AP')}


@dataclass(frozen=True)
class Family:
    """Configs of one folder, one page and one metafile.

    Args:
        collection: Its name in the metafile.
        folder: Where its configs, ``README.md`` and ``metafile.yml`` lie.
        results: Stored runs of ``tools/quantize.py``, at most one a config.
        in_index: Whether ``model-index.yml`` names it: its configs work in an installed package,
            with nothing of the checkout.
        paper: That the method is from.
        like: The folder whose configs these stand on, each on the one of the same name without
            this folder's before it; empty where they stand for themselves.
    """

    collection: str
    folder: str
    results: str
    in_index: bool = False
    paper: Mapping[str, str] = field(default_factory=lambda: PAPER)
    like: str = ''


FAMILIES = {
    'bitsplit': Family('Bit-split', 'configs', 'results/openmmlab/configs.json', in_index=True),
    'qdrop': Family('QDrop', 'configs/qdrop', 'results/openmmlab/qdrop.json', in_index=True,
                    paper=QDROP_PAPER, like='configs'),
    'transformers': Family('Bit-split on transformers', 'configs/transformers',
                           'results/openmmlab/transformers.json', in_index=True),
    'cifar': Family('Bit-split on CIFAR-10', 'configs/cifar', 'results/cifar/configs.json'),
    'demo': Family('Bit-split on the demo', 'configs/demo', 'results/demo/configs.json'),
}


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One config of a family.

    Args:
        config: Its path from the repository's root.
        bits: As its file name says.
        model: What the bench knows of its model.
        float_config: Of the float model; upstream's as ``package::path``.
        weights: Float checkpoint.
        run: Its stored run, ``None`` where it has not been run.
    """

    config: str
    bits: Bits
    model: BenchModel
    float_config: str
    weights: str
    run: Mapping[str, Any] | None


def family_of(name: str) -> Family:
    """Returns a family by name; ``ValueError`` names the nearest."""
    if name not in FAMILIES:
        raise ValueError(f"family '{name}' is not known; {nearest(name, FAMILIES)}.")
    return FAMILIES[name]


def entries(root: Path, name: str) -> list[ZooEntry]:
    """Lists the quantization configs of a family.

    Args:
        root: The repository.
        name: Key of ``FAMILIES``.

    Raises:
        ValueError: A stored run is of no config of the family, of other bits than its file
            name says, or one of two of the same config.
    """
    family = family_of(name)
    runs: dict[str, Mapping[str, Any]] = {}
    for run in read_runs([root / family.results]):
        if run['config'] in runs:
            raise ValueError(f"{family.results} has two runs of {run['config']}.")
        runs[run['config']] = run
    found = [_entry(root, path, family, runs.pop(path.relative_to(root).as_posix(), None))
             for path in sorted((root / family.folder).glob('*_w?a?.py'))]
    if runs:
        raise ValueError(f'{family.results} has runs of configs that are not in '
                         f'{family.folder}: {", ".join(runs)}.')
    return found


def zoo_table(root: Path, name: str) -> str:
    """Returns the table of a family: measured numbers, and the paper's in columns of their own.

    Args:
        root: The repository.
        name: Key of ``FAMILIES``.
    """
    found = entries(root, name)
    # The paper's columns are Bit-split's.
    with_paper = not FAMILIES[name].like and any(entry.model.paper for entry in found)
    header = ['Config', 'Bits', 'Metric', 'Float', 'Quantized', 'Drop', 'Float MB',
              'Quantized MB', 'Seconds', *(['Paper: float', 'Paper: Bit-split'] if with_paper
                                           else [])]
    rows = []
    for entry in found:
        link = f'[{Path(entry.config).name}]({Path(entry.config).name})'
        for metric, cells in _measured(entry):
            rows.append([link, entry.bits.label, HEADINGS.get(metric, metric), *cells,
                         *(_paper_cells(entry, metric) if with_paper else [])])
    return text_table(header, rows)


def metafile_text(root: Path, name: str) -> str:
    """Returns ``metafile.yml`` of a family.

    Args:
        root: The repository.
        name: Key of ``FAMILIES``.
    """
    family = family_of(name)
    collection = {'Name': family.collection, 'Paper': dict(family.paper),
                  'README': f'{family.folder}/README.md',
                  'Metadata': {'Architecture': ['Post-training quantization']},
                  'Code': {'Version': f'v{__version__}'}}
    return NOTICE + _yaml({'Collections': [collection],
                           'Models': [_model(entry, family) for entry in entries(root, name)]})


def model_index_text() -> str:
    """Returns ``model-index.yml``."""
    return NOTICE + _yaml({'Import': [f'{family.folder}/metafile.yml'
                                      for family in FAMILIES.values() if family.in_index]})


def _entry(root: Path, path: Path, family: Family, run: Mapping[str, Any] | None) -> ZooEntry:
    name = path.relative_to(root).as_posix()
    stem, weight, activation = re.fullmatch(r'(.+)_w(\d)a(\d)', path.stem).groups()
    bits = Bits(int(weight), int(activation))
    if run is not None and bits_of(run) != bits.label:
        raise ValueError(f'the stored run of {name} is {bits_of(run)}; store the one of the config '
                         'as it stands.')
    if family.like:
        path = root / family.like / path.name.removeprefix(f'{path.parent.name}_')
        stem = stem.removeprefix(f'{Path(family.folder).name}_')
    model, values = _model_of(f'{family.like or family.folder}/{stem}'), _assignments(path)
    own_float = path.with_name(f'{stem}_float.py')
    float_config = own_float.relative_to(root).as_posix() if own_float.exists() \
        else values['_base_'][0]
    return ZooEntry(config=name, bits=bits, model=model, float_config=float_config,
                    weights=values['load_from'], run=run)


def _model_of(stem: str) -> BenchModel:
    """The model whose configs have this path, up to the bits."""
    for model in (*BENCH_MODELS.values(), *ZOO_MODELS):
        if re.sub(r'_w\da\d\.py$', '', model.config) == stem:
            return model
    raise ValueError(f'no model of bench/paper/models.py has configs named {stem}; add it there.')


def _assignments(path: Path) -> dict[str, Any]:
    """Top-level names of a config that are given as plain values."""
    found = {}
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # dict(...) and the like
    return found


def _measured(entry: ZooEntry) -> list[tuple[str, list[str]]]:
    """(metric, cells from float to seconds) of a config's stored run, or that there is none."""
    if entry.run is not None:
        return [(row[2], row[3:]) for row in results_rows(entry.run)]
    metrics = [metric for metric in HEADLINES
               if published_float(_tables(entry)[-1], entry.model.paper, metric) is not None]
    usual = ['coco/bbox_mAP' if entry.model.detector else 'accuracy/top1']
    return [(metric, [NOT_RUN, NOT_RUN, *'----']) for metric in metrics or usual]


def _tables(entry: ZooEntry) -> Sequence[int]:
    """Tables of the paper that may hold a config's bits."""
    return (5,) if entry.model.detector else (3, 4)


def _paper_cells(entry: ZooEntry, metric: str) -> list[str]:
    """The paper's float and Bit-split figures of a config."""
    found = [published(table, entry.model.paper, 'Bit-split', entry.bits, metric)
             for table in _tables(entry)]
    values = [published_float(_tables(entry)[-1], entry.model.paper, metric),
              next((value for value in found if value is not None), None)]
    return ['-' if value is None else f'{value:.2f}' for value in values]


def _model(entry: ZooEntry, family: Family) -> dict[str, Any]:
    """One item of ``Models``."""
    run = entry.run
    floats = {'Config': entry.float_config, 'Weights': entry.weights}
    bits = {'Weight Bits': entry.bits.weight, 'Activation Bits': entry.bits.activation}
    model = {'Name': Path(entry.config).stem, 'In Collection': family.collection,
             'Config': entry.config, 'Metadata': bits, 'Float Model': floats}
    if run is None:
        bits['Status'] = f'{NOT_RUN} on {DATASETS[entry.model.data]}'
        return model
    floats['Metrics'] = {name: value for _, name, value in _metrics(run['float'])}
    bits |= {'Calibration Images': run['calibration']['num_images'],
             'Float Bytes': run['size_bytes']['float'],
             'Quantized Bytes': run['size_bytes']['quantized_checkpoint'],
             'Calibration Seconds': round(run['seconds']['calibration'], 1)}
    tasks: dict[str, dict[str, float]] = {}
    for task, name, value in _metrics(run['quantized']):
        tasks.setdefault(task, {})[name] = value
    model['Results'] = [{'Task': task, 'Dataset': DATASETS[entry.model.data], 'Metrics': metrics}
                        for task, metrics in tasks.items()]
    return model


def _metrics(figures: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(task, name, value) of the metrics that metafiles have, rounded as tables are."""
    return [(*METRICS[name], round(in_points(name, figures[name]), 2))
            for name in METRICS if name in figures]


def _yaml(content: Any) -> str:
    import yaml  # comes with mmengine

    class Plain(yaml.SafeDumper):
        """Writes no anchors for what occurs twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Plain, sort_keys=False, width=120, allow_unicode=True)
