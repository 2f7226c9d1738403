"""The three JSON files that mmdeploy's runtime reads beside ``end2end.onnx``.

Source: what mmdeploy 1.3.1 documents and its runtime takes: ``deploy.json`` names model and task,
``pipeline.json`` the steps from an image to results, ``detail.json`` where the model is from.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mmbitsplit.engine.onnx.export_targets import (
    CLASSIFIER,
    IMAGE,
    SINGLE_STAGE,
    architecture,
    preprocessing_facts,
)
from mmbitsplit.export.onnx.trace import OPSET
from mmbitsplit.version import __version__

SCHEMA = '1.3.1'  # version of mmdeploy whose layout this is
DEPLOY, PIPELINE, DETAIL = 'deploy.json', 'pipeline.json', 'detail.json'
LOGITS = 'output'  # what the runtime's classification heads read
META = ('filename', 'ori_filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
        'flip_direction', 'img_norm_cfg', 'valid_ratio', 'pad_param')
# Steps of test pipelines that only hand things on.
LEFT_OUT = ('LoadAnnotations', 'LoadImageFromFile', 'LoadImageFromNDArray', 'PackDetInputs',
            'PackInputs')


def layout_files(model: nn.Module, cfg: Config, file: str, shape: tuple[int, int], *,
                 opset: int = OPSET, format: str = 'int8') -> dict[str, dict[str, Any]]:
    """Returns the content of the three files by their names.

    Args:
        model: A classifier or single-stage detector, without its wrapper.
        cfg: The config, with the test pipeline.
        file: Name of the ONNX file.
        shape: Height and width that it takes.
        opset: Of the ONNX file.
        format: Of the ONNX file.

    Raises:
        ValueError: The model's task or a step of its test pipeline is not known here; names it.
    """
    kind = check_layout(model)
    name = re.sub(r'[^a-z0-9]', '', type(model).__name__.lower()) or 'model'
    task, package = ('Classifier', 'mmpretrain') if kind == CLASSIFIER else ('Detector', 'mmdet')
    deploy = {'version': SCHEMA, 'task': task, 'models': [
        {'name': name, 'net': file, 'weights': '', 'backend': 'onnxruntime',
         'precision': format.upper(), 'batch_size': 1, 'dynamic_shape': False}], 'customs': []}
    detail = {'version': SCHEMA,
              'codebase': {'task': 'Classification' if kind == CLASSIFIER else 'ObjectDetection',
                           'codebase': package, 'version': _version(package),
                           'pth': '', 'config': Path(cfg.filename or '').name},
              'codebase_config': {'type': package}, 'onnx_config': {
                  'type': 'onnx', 'export_params': True, 'keep_initializers_as_inputs': False,
                  'opset_version': opset, 'save_file': file, 'input_names': [IMAGE],
                  'output_names': [LOGITS] if kind == CLASSIFIER else ['dets', 'labels'],
                  'input_shape': [shape[1], shape[0]]},
              'backend_config': {'type': 'onnxruntime'}, 'calib_config': {},
              'mmbitsplit': {'version': __version__, 'format': format}}
    return {DEPLOY: deploy, PIPELINE: {'pipeline': _pipeline(model, cfg, name, kind, shape)},
            DETAIL: detail}


def check_layout(model: nn.Module) -> str:
    """Returns the kind of a model that the layout has.

    Raises:
        ValueError: It has no place there.
    """
    kind = architecture(model)
    if kind not in (CLASSIFIER, SINGLE_STAGE):
        raise ValueError(f"layout='mmdeploy' is not supported for a {kind} "
                         f'({type(model).__name__}); allowed are classifiers and single-stage '
                         'detectors. Export it without a layout.')
    return kind


def _pipeline(model: nn.Module, cfg: Config, name: str, kind: str, shape: tuple[int, int],
              ) -> dict[str, Any]:
    steps = _detector_steps(model, cfg, shape) if kind == SINGLE_STAGE \
        else _classifier_steps(model, cfg)
    collect = {'type': 'Collect', 'keys': ['img'], 'meta_keys': list(META)}
    last = {'type': 'Task', 'name': 'postprocess', 'output': ['post_output'],
            'input': (['prep_output'] if kind == SINGLE_STAGE else []) + ['infer_output']}
    if kind == SINGLE_STAGE:
        test = dict(model.bbox_head.test_cfg or {})
        last |= {'module': 'mmdet', 'component': 'ResizeBBox', 'params': {
            'score_thr': test.get('score_thr', 0.0),
            'min_bbox_size': max(0, test.get('min_bbox_size', 0))}}
    else:
        top = getattr(model.head, 'topk', (1,))
        last |= {'module': 'mmcls', 'component': 'LinearClsHead', 'params': {
            'softmax': True, 'topk': max(top) if isinstance(top, Sequence) else int(top)}}
    return {'input': ['img'], 'output': ['post_output'], 'tasks': [
        {'type': 'Task', 'module': 'Transform', 'name': 'Preprocess', 'input': ['img'],
         'output': ['prep_output'], 'transforms': [
             {'type': 'LoadImageFromFile'}, *steps, {'type': 'ImageToTensor', 'keys': ['img']},
             collect]},
        {'name': name, 'type': 'Task', 'module': 'Net', 'is_batched': False,
         'input': ['prep_output'], 'output': ['infer_output'], 'input_map': {'img': IMAGE},
         'output_map': {}},
        last]}


def _detector_steps(model: nn.Module, cfg: Config, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Resizing and padding to the graph's shape. mmdet pads either images (YOLOX) or, in the
    preprocessor, what is normalised.

    A square takes any image in its proportions, if the test pipeline keeps these (SSD's does not).
    Another shape would not hold images of the other orientation: they are stretched to it, as in
    static models of mmdeploy.
    """
    height, width = shape
    keep_ratio, value = height == width, None
    for step in _test_pipeline(cfg):
        kind = _kind(step)
        if kind == 'Pad':
            value = step.get('pad_val', 0)
        elif kind == 'Resize':
            keep_ratio = keep_ratio and step.get('keep_ratio', False)
        elif kind not in LEFT_OUT:
            raise _unknown(kind)
    resize = {'type': 'Resize', 'size': [width, height], 'keep_ratio': keep_ratio}
    pad: dict[str, Any] = {'type': 'Pad', 'size': [width, height]}
    if value is None:
        after = getattr(model.data_preprocessor, 'pad_value', 0)
        return [resize, _normalize(model), {**pad, 'pad_val': after} if after else pad]
    inside = value.get('img', 0) if isinstance(value, Mapping) else value
    first = inside[0] if isinstance(inside, Sequence) else inside
    return [resize, {**pad, 'pad_val': first}, _normalize(model)]


def _classifier_steps(model: nn.Module, cfg: Config) -> list[dict[str, Any]]:
    return [*(_classifier_step(step) for step in _test_pipeline(cfg)
              if _kind(step) not in LEFT_OUT), _normalize(model)]


def _classifier_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the runtime's step. Upstream's sizes are (width, height), and so are the runtime's
    but in crops."""
    kind = _kind(step)
    if kind == 'CenterCrop' and not step.get('auto_pad'):
        size = step['crop_size']
        return {'type': 'CenterCrop', 'crop_size': size if isinstance(size, int) else size[::-1]}
    scale = step.get('scale')
    if kind == 'ResizeEdge' and step.get('edge', 'short') == 'short':
        found = {'type': 'Resize', 'size': [scale, -1], 'keep_ratio': True}  # the shorter edge
    elif kind == 'Resize' and scale is not None:
        found = {'type': 'Resize', 'keep_ratio': step.get('keep_ratio', False),
                 'size': [scale, scale] if isinstance(scale, int) else list(scale)}
    else:
        settings = ', '.join(f'{key}={value!r}' for key, value in step.items() if key != 'type')
        raise _unknown(f'{kind}({settings})')
    return found | {key: step[key] for key in ('interpolation',) if key in step}


def _kind(step: Mapping[str, Any]) -> str:
    return str(step['type']).rpartition('.')[2]


def _normalize(model: nn.Module) -> dict[str, Any]:
    facts = preprocessing_facts(model)
    return {'type': 'Normalize', 'to_rgb': facts['channels'] == 'RGB',
            'mean': facts['mean'] or [0.0] * 3, 'std': facts['std'] or [1.0] * 3}


def _test_pipeline(cfg: Config) -> Sequence[Mapping[str, Any]]:
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while dataset.get('dataset'):
        dataset = dataset['dataset']
    return dataset.get('pipeline') or ()


def _version(package: str) -> str:
    return str(importlib.import_module(package).__version__)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"layout='mmdeploy' is not supported with the step '{kind}' of the test "
                      f'pipeline; allowed are Resize to a scale, ResizeEdge of the short edge, '
                      f'CenterCrop without auto_pad, Pad and {", ".join(LEFT_OUT)}. Export '
                      'without a layout.')
