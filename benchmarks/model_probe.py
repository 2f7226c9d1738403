"""What quantizing one model of mmdet or mmpretrain with random weights shows.

No data and no weights are needed. Weights are as the model initialises them, those that start at
zero made small; batch norms take the statistics of the images, so that signals neither die nor
explode with depth. What layers a model has, which of them are quantized and whether the run ends
well depends on the architecture alone; errors are those of random layers.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.integer_probe import compare_integers
from mmbitsplit.calibration import calibrate
from mmbitsplit.engine.configs.default_request import CLASSIFICATION, task_of
from mmbitsplit.engine.data.synthetic_images import reach_all_stages, synthetic_batches
from mmbitsplit.engine.run.float_weights import forget_pretrained
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.methods import read_request

BITS = ((8, 8), (4, 8))  # weights, inputs
METHOD = 'RoundToNearest'
ROWS = 256  # positions a layer
BATCHES = 2
SHAPE = (160, 192)  # of images for detectors, pixels
# By what a config's name begins with. Where queries are chosen among positions, there are more of
# these than of them.
SHAPES = {'ssd300': (300, 300), 'ssd512': (512, 512), 'cornernet': (255, 255),
          'centripetalnet': (255, 255), 'dino': (256, 256), 'ddq': (256, 256),
          'ddod': (384, 384)}
ALONE = ('ga-',)  # their masked convolutions take one image at a time
GENTLE = 0.5  # spread of what a batch norm gives, around 1
LEAST = 1e-12  # below this a tensor counts as zero


def probe(name: str, cfg: Config) -> dict[str, Any]:
    """Quantizes a config's model at several widths.

    Args:
        name: File name of the config.
        cfg: Its config.

    Returns:
        Task, counts, shares and errors; plain values.
    """
    task = task_of(cfg)
    init_default_scope(cfg.default_scope)
    model = build_model(cfg)
    batches = make_batches(name, cfg, task)
    enliven(model, batches)
    multiplications, seen = count_multiplications(model, batches[0])
    found: dict[str, Any] = {'task': task, 'errors': {}}
    for weight_bits, activation_bits in BITS:
        quantized = copy.deepcopy(model)
        spec = read_request(dict(
            weight=dict(num_bits=weight_bits), activation=dict(num_bits=activation_bits),
            method=dict(type=METHOD),
            calibration=dict(num_images=BATCHES, batch_size=1, rows_per_layer=ROWS)))
        _, report = calibrate(quantized, batches, spec, run=run,
                              replay_points=replay_points(quantized))
        found['errors'][f'W{weight_bits}A{activation_bits}'] = errors_of(report)
        found['integers'] = compare_integers(  # those of the narrower weights, which are kept
            quantized, lambda model: run(model, copy.deepcopy(batches[0])),
            {layer.name for layer in report.layers if 'last' in layer.role})
    return {**found, **shares_of(model, report, multiplications, seen)}


def run(model: nn.Module, batch: Any) -> Any:
    """A model's test step, as evaluation makes it."""
    return model.test_step(batch)


def build_model(cfg: Config) -> nn.Module:
    """Builds a config's model with random weights, the same every time."""
    forget_pretrained(cfg.model)
    reach_all_stages(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return revert_sync_batchnorm(model).eval().requires_grad_(False)  # nothing is trained


def make_batches(name: str, cfg: Config, task: str) -> list[dict[str, Any]]:
    """Batches of synthetic images, as a dataloader gives them: four a classifier, else two.

    One where a model takes no more.
    """
    if task == CLASSIFICATION:
        return synthetic_batches(cfg, BATCHES, 4)
    return synthetic_batches(cfg, BATCHES, 1 if name.startswith(ALONE) else 2, next(
        (shape for start, shape in SHAPES.items() if name.startswith(start)), SHAPE))


@torch.no_grad()
def enliven(model: nn.Module, batches: list[Any]) -> None:
    """Makes weights that start at zero small, and gives batch norms the images' statistics."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(
        module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None]
    for name, value in model.named_parameters():
        if name.endswith('weight') and not value.abs().max() > LEAST:
            value.copy_(0.5 if value.dim() == 1 else 0.02 * torch.randn(
                value.shape, generator=generator))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:  # most of a channel passes the activation
            norm.weight.mul_(GENTLE)
            norm.bias.add_(1)
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    try:
        for batch in batches:
            run(model, batch)
    except ValueError:  # one value a channel has no spread
        for norm in norms:
            norm.reset_running_stats()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def count_multiplications(model: nn.Module, batch: Any) -> tuple[dict[str, float], float]:
    """Counts the multiplications of one batch.

    Returns:
        Those of each module with a weight, by geometry: weight elements times positions; and all
        that torch knows of (convolutions, linear layers, matrix products, attention), with those
        of modules that compute by other operators, deformable convolutions for one.
    """
    by_module: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    counter = FlopCounterMode(display=False)
    before: dict[str, int] = {}

    def enter(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            before[name] = counter.get_total_flops()
        return hook

    def leave(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
                amount = module.weight.numel() * _positions(module, inputs[0], output)
                by_module[name] += amount
                if counter.get_total_flops() == before[name]:
                    unknown[name] += amount
        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, 'weight', None), Tensor) and module.weight.dim() >= 2 \
                and not isinstance(module, nn.Embedding):
            hooks += [module.register_forward_pre_hook(enter(name)),
                      module.register_forward_hook(leave(name))]
    # As matrix products: the counter does not know the CPU's kernel for attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run(model, batch)
    for hook in hooks:
        hook.remove()
    return dict(by_module), counter.get_total_flops() / 2 + sum(unknown.values())


def _positions(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """How often each element of a weight is used."""
    transposed = getattr(module, 'transposed', False)
    value = x if transposed else y
    if module.weight.dim() == 2:
        return value.numel() // value.shape[-1]
    return value.numel() // value.shape[1] if value.dim() == module.weight.dim() \
        else value.numel() // value.shape[0]


def errors_of(report: Any) -> dict[str, Any]:
    """The errors of the layers that give a model's outputs, and the worst of all layers."""
    last = [layer.error for layer in report.layers if 'last' in layer.role]
    worst = max(report.layers, key=lambda layer: layer.error)
    return {'outputs': median(last) if last else None, 'layers': median(
        layer.error for layer in report.layers), 'worst': worst.error, 'worst_layer': worst.name}


def shares_of(model: nn.Module, report: Any, multiplications: Mapping[str, float],
              all_multiplications: float) -> dict[str, Any]:
    """Counts what is quantized, and says what is not, largest first."""
    parameters = sum(value.numel() for value in model.parameters())
    weights = sum(math.prod(layer.shape) for layer in report.layers)
    covered = sum(multiplications.get(layer.name, 0) for layer in report.layers)
    kept: Counter[tuple[str, str]] = Counter()
    for part in report.kept_float:
        kept[part.kind, part.reason] += part.num_weights
    return {'layers': len(report.layers), 'parameters': parameters,
            'share_of_weights': weights / parameters,
            'share_of_multiplications': covered / all_multiplications if all_multiplications
            else None, 'multiplications': all_multiplications,
            'kept_float': [dict(kind=kind, reason=reason, share=number / parameters)
                           for (kind, reason), number in kept.most_common(8)]}
