"""Files of a run: the quantized checkpoint, the config that loads it, the tables."""

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmbitsplit.engine.files.layer_log import layer_row
from mmbitsplit.engine.run.model_wrapper import QuantizedModel
from mmbitsplit.engine.run.quantize import QuantizedRun
from mmbitsplit.engine.run.weight_averages import is_average
from mmbitsplit.export import PAYLOAD_KEY, PLAN_KEY, pack_checkpoint, versions, width_bytes
from mmbitsplit.export.writing import write_checkpoint, write_json, write_text
from mmbitsplit.models import describe
from mmbitsplit.planning.first_and_last import is_uniform
from mmbitsplit.structures import QuantSpec, width_summary
from mmbitsplit.structures.plan_choice import budget_summary

CHECKPOINT, CONFIG = 'quantized.pth', 'quantized_config.py'
CONVERTED = ('quantized.safetensors', 'quantized.json')  # made of it by `mmbitsplit convert`
LAYERS, RESULTS = 'layers.json', 'results.json'
HOOK_TYPE = 'mmbitsplit.QuantizationHook'
RUNNER_TYPE = 'mmbitsplit.QuantizationRunner'


def file_sha256(path: str | None) -> str | None:
    """Returns the hash of a local file, ``None`` for anything else."""
    if not path or not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def save_run(work_dir: Path, cfg: Config, spec: QuantSpec, run: QuantizedRun,
             dataset_meta: Any = None) -> dict[str, int]:
    """Writes checkpoint, config and ``layers.json``.

    Args:
        work_dir: Where to.
        cfg: The config that was quantized.
        spec: The request.
        run: What came of it.
        dataset_meta: Class names and the like, for upstream inference tools.

    Returns:
        ``size_bytes`` of the results.
    """
    state = QuantizedModel(run.prepared.model).state_dict()  # with the names it will load
    del state[PLAN_KEY]
    meta = dict(versions=versions(), quantization=_plain(spec.to_dict()),
                float_checkpoint=_plain(cfg.get('load_from')),
                float_checkpoint_sha256=file_sha256(cfg.get('load_from')),
                calibration=dict(image_ids=_plain(run.data.image_ids),
                                 seed=spec.calibration.seed),
                multiplications=run.report.multiplications)
    if dataset_meta is not None:
        meta['dataset_meta'] = _plain(dict(dataset_meta))
    checkpoint = pack_checkpoint(state, describe(run.prepared), meta)
    widths = width_bytes(state)
    # The config first: a checkpoint in place means that everything is.
    write_text(work_dir / CONFIG, quantized_config(cfg, several=bool(widths)).pretty_text)
    write_json(work_dir / LAYERS, layers_table(run))
    write_checkpoint(work_dir / CHECKPOINT, checkpoint)
    return {'float': run.float_bytes,
            'quantized_checkpoint': (work_dir / CHECKPOINT).stat().st_size,
            'quantized_payload': checkpoint['state_dict'][PAYLOAD_KEY].numel(),
            **({'quantized_widths': {str(width or 'narrowest'): size
                                     for width, size in widths.items()}} if widths else {})}


def quantized_config(cfg: Config, several: bool = False) -> Config:
    """Returns the config that loads the quantized checkpoint with upstream tools.

    Args:
        cfg: That was quantized.
        several: Whether layers have several widths: the config then has a place for the one to use.
    """
    result = copy.deepcopy(cfg.to_dict())
    result['model'] = _wrapped(result['model'])
    if several:
        result['model']['quantized_bits'] = None
    result['custom_hooks'] = without_hook(result.get('custom_hooks') or [])
    result['custom_hooks'] = [hook for hook in result['custom_hooks'] if not is_average(hook)]
    if result.get('runner_type') == RUNNER_TYPE:
        del result['runner_type']
    for key in ('quantization', 'load_from', 'resume', 'work_dir', 'launcher'):
        result.pop(key, None)
    imports = list((result.get('custom_imports') or {}).get('imports', []))
    if 'mmbitsplit.engine' not in imports:
        imports.append('mmbitsplit.engine')
    result['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    return Config(result)


def _wrapped(model: dict[str, Any]) -> dict[str, Any]:
    """Names the wrapper as the type; upstream tools find ``backbone`` and so on where they were."""
    if 'model' in model:  # that name would be taken twice
        return dict(type='mmbitsplit.QuantizedModel', model=model)
    return {**model, 'type': 'mmbitsplit.QuantizedModel', 'model': model['type']}


def without_hook(hooks: list[Any]) -> list[Any]:
    """Takes the quantization hook out of a list of hook configs."""
    return [hook for hook in hooks
            if not (isinstance(hook, dict) and hook.get('type') == HOOK_TYPE)]


def layers_table(run: QuantizedRun) -> dict[str, Any]:
    """Returns ``layers.json``: a row a layer, what stays float and why, doubts."""
    report = run.report
    return {'layers': [layer_row(layer) for layer in report.layers],
            **({'products': [dataclasses.asdict(product) for product in report.products]}
               if report.products else {}),
            'kept_float': [dataclasses.asdict(remainder) for remainder in report.kept_float],
            'folded_batch_norms': report.folded_batch_norms,
            'selections': [dataclasses.asdict(selection) for selection in report.selections],
            'warnings': report.warnings,
            'units': [dataclasses.asdict(unit) for unit in report.units]}


def results_table(config: str, spec: QuantSpec, run: QuantizedRun, sizes: dict[str, int],
                  float_metrics: dict[str, float], quantized_metrics: dict[str, float],
                  evaluation_seconds: float, untrained: bool) -> dict[str, Any]:
    """Returns ``results.json``; ``docs/files.md`` says what its keys mean."""
    seconds = {**run.report.seconds, 'evaluation': evaluation_seconds}
    return {
        'config': config, 'method': dict(spec.method),
        'weight_bits': spec.weight.num_bits, 'activation_bits': spec.activation.num_bits,
        'bits': {**width_summary(run.report.layers), 'uniform': is_uniform(
            [(layer.role, layer.weight_bits, layer.activation_bits)
             for layer in run.report.layers if layer.kind != 'embedding'], spec)},
        'float': float_metrics, 'quantized': quantized_metrics,
        'drop': drops(float_metrics, quantized_metrics),
        'size_bytes': sizes, 'multiplications': run.report.multiplications,
        'seconds': seconds,
        'peak_rss_bytes': run.report.peak_rss_bytes,
        'estimated_bytes': run.report.estimated_bytes,
        'calibration': {**run.report.calibration, 'image_ids': run.data.image_ids,
                        'unreadable_images': run.data.unreadable},
        'versions': versions(), **({'untrained': True} if untrained else {}),
        **({'refinement': run.report.refinement} if run.report.refinement else {}),
        **({'tuning': run.report.tuning} if run.report.tuning else {}),
        **({'budget': budget_summary(run.report.budget)} if run.report.budget else {}),
    }


def drops(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns by how much each figure that both have is less afterwards."""
    return {name: value - after[name] for name, value in before.items() if name in after}


def save_results(work_dir: Path, results: dict[str, Any]) -> None:
    """Writes ``results.json``, the last file of a run."""
    write_json(work_dir / RESULTS, results)


def numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    """Returns the figures among an evaluator's results as plain floats."""
    return {name: float(value) for name, value in (metrics or {}).items()
            if isinstance(value, (int, float))}


def _plain(value: Any) -> Any:
    """Turns nested values into those that JSON and ``torch.load(weights_only=True)`` know."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):  # arrays, tensors and their elements
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
