"""Which parts of OpenMMLab models become ONNX graphs, and how graphs take their place again.

A classifier and a single-stage detector are one graph: normalised image to logits, or to the raw
outputs of the head. A two-stage detector is one graph up to the proposals' raw outputs and one for
each box and mask head; between them stay upstream's proposal selection and RoIAlign, which so
remain exactly what was evaluated.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.export.onnx.runtimes import OnnxGraph, restore
from mmbitsplit.export.onnx.trace import GraphRequest

IMAGE = 'image'
IMAGE_DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}
FEATURES = 'features'
CLASSIFIER, SINGLE_STAGE, TWO_STAGE = 'classifier', 'single-stage detector', 'two-stage detector'


class _Logits(nn.Module):
    """Normalised image to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model(image, mode='tensor')


class _RawOutputs(nn.Module):
    """Normalised image to what a dense head gives, per level."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model.bbox_head(self.model.extract_feat(image))


class _FeaturesAndProposals(nn.Module):
    """Normalised image to features and the raw outputs of the proposal head."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        features = self.model.extract_feat(image)
        return list(features), self.model.rpn_head(features)


def architecture(model: nn.Module) -> str:
    """Says which of the three kinds a model is.

    Raises:
        ValueError: None of them.
    """
    bases = {cls.__name__ for cls in type(model).__mro__}
    if 'TwoStageDetector' in bases and getattr(model, 'rpn_head', None) is not None:
        return TWO_STAGE
    if 'SingleStageDetector' in bases:
        return SINGLE_STAGE
    if 'ImageClassifier' in bases:
        return CLASSIFIER
    raise ValueError(
        f'{type(model).__name__} cannot be exported; allowed are ImageClassifier of mmpretrain, '
        'single-stage and two-stage detectors of mmdet. Export a part that is tensors alone with '
        'mmbitsplit.apis.export_onnx(part, file, inputs=...).')


def export_requests(model: nn.Module, shape: tuple[int, int], dynamic: bool = False,
                    ) -> list[GraphRequest]:
    """Lists the graphs of a model of mmdet or mmpretrain.

    Args:
        model: In eval mode.
        shape: Height and width of the image.
        dynamic: Whether batch, height and width may vary. The number of regions that a box or
            mask head sees always may.

    Raises:
        ValueError: The model is of no supported kind.
    """
    kind = architecture(model)
    parts = {CLASSIFIER: _Logits, SINGLE_STAGE: _RawOutputs, TWO_STAGE: _FeaturesAndProposals}
    size = 2 if dynamic else 1  # an example of 1 would be taken for always 1
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(size, 3, *shape, device=parameter.device)
    whole = parts[kind](model).eval()
    requests = [GraphRequest('proposals' if kind == TWO_STAGE else 'model', whole, (image,),
                             (IMAGE,), {IMAGE: IMAGE_DYNAMIC} if dynamic else {})]
    if kind == TWO_STAGE:
        requests += [_head_request(name, head, extractor)
                     for name, head, extractor in _roi_heads(model)]
    return requests


def _head_request(name: str, head: nn.Module, extractor: nn.Module) -> GraphRequest:
    size = extractor.roi_layers[0].output_size
    height, width = (size, size) if isinstance(size, int) else size
    device = next(head.parameters(), torch.zeros(0)).device
    features = torch.zeros(2, extractor.out_channels, height, width, device=device)
    return GraphRequest(name, head, (features,), (FEATURES,), {FEATURES: {0: 'regions'}})


def _roi_heads(model: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """Box and mask heads with the RoI extractors that feed them; a cascade has several of each."""
    roi_head, found = model.roi_head, []
    for kind, extractor_name in (('bbox_head', 'bbox_roi_extractor'),
                                 ('mask_head', 'mask_roi_extractor')):
        heads = getattr(roi_head, kind, None)
        if heads is None:
            continue
        extractors = getattr(roi_head, extractor_name)
        name = kind.replace('bbox', 'box')
        if not isinstance(heads, nn.ModuleList):
            found.append((name, heads, extractors))
            continue
        found += [(f'{name}_{stage}', head,
                   extractors[stage] if isinstance(extractors, nn.ModuleList) else extractors)
                  for stage, head in enumerate(heads)]
    return found


def preprocessing_facts(model: nn.Module) -> dict[str, Any]:
    """What an image must go through before it enters the graph, for the file's metadata."""
    preprocessor = model.data_preprocessor
    facts = {'layout': 'NCHW', 'type': type(preprocessor).__name__,
             'pad_size_divisor': getattr(preprocessor, 'pad_size_divisor', 1)}
    rgb = getattr(preprocessor, 'to_rgb', None)
    facts['channels'] = 'RGB' if (getattr(preprocessor, '_channel_conversion', False)
                                  if rgb is None else rgb) else 'BGR'
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        facts[name] = None if value is None else value.flatten().tolist()
    return facts


def use_graphs(model: nn.Module, graphs: Mapping[str, tuple[OnnxGraph, Any]],
               watch: Callable[[str, tuple[Tensor, ...], list[Tensor]], Any]
               = lambda name, inputs, outputs: None) -> None:
    """Makes a model compute its tensors by graphs; everything behind them stays upstream's.

    Args:
        model: Of the architecture that was exported; its weights are no longer used.
        graphs: By the requests' names, each with the structure of its outputs.
        watch: Told each graph's name, inputs and outputs when it ran.

    Raises:
        ValueError: A graph of the architecture is missing.
    """
    kind = architecture(model)
    heads = _roi_heads(model) if kind == TWO_STAGE else []
    whole = 'proposals' if kind == TWO_STAGE else 'model'
    for name in (whole, *(name for name, _, _ in heads)):
        if name not in graphs:
            raise ValueError(f"The graph '{name}' of the {kind} is missing, there are "
                             f'{sorted(graphs)}; export the model again.')

    def run(name: str, *inputs: Tensor) -> Any:
        graph, structure = graphs[name]
        outputs = graph(*inputs)
        watch(name, inputs, outputs)
        return restore(outputs, structure)

    if kind == TWO_STAGE:
        _use_proposals(model, partial(run, whole))
        for name, head, _ in heads:
            head.forward = partial(run, name)
        return
    head = model.head if kind == CLASSIFIER else model.bbox_head
    # The head is given the image where it expects features, and passes it to the graph.
    model.extract_feat = lambda inputs, *args, **kwargs: (inputs,)
    head.forward = lambda features: run(whole, features[0])


def _use_proposals(model: nn.Module, run: Callable[[Tensor], Any]) -> None:
    """One graph gives the features now and the proposals' raw outputs when they are asked for."""
    waiting = []

    def extract_feat(inputs: Tensor) -> tuple[Tensor, ...]:
        features, proposals = run(inputs)
        waiting[:] = [proposals]
        return tuple(features)

    model.extract_feat = extract_feat
    model.rpn_head.forward = lambda features: waiting.pop()
