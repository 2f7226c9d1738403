"""Models that PTMQ's tables are made for: torch modules of the benchmarks, and any config."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.paper.models import bench_model

CIFAR = ('resnet20', 'resnet56')
FASHION = 'fashion_vit'
PAPER_NAMES = {'resnet18': 'ResNet-18', 'resnet50': 'ResNet-50', 'deit_small': 'DeiT-S',
               'deit_base': 'DeiT-B'}  # where the data are ImageNet's


class Subject(Protocol):
    """A model with data to calibrate and to judge it on.

    Attributes:
        label: Model and data.
        metric: What figures are, in points.
        paper: The paper's name of the model, where it is the paper's model on its data.
    """

    label: str
    metric: str
    paper: str | None

    def float_figure(self) -> float:
        """Of the float model."""

    def calibrated(self, request: Mapping[str, Any], seed: int, num_images: int,
                   ) -> tuple[nn.Module, float]:
        """A model that a request was applied to, and the seconds of processors that it took."""

    def figure(self, model: nn.Module) -> float:
        """Of a model at the widths in use."""


@dataclass(frozen=True, kw_only=True)
class ModuleSubject:
    """A torch module with images in memory.

    Args:
        label: See ``Subject``.
        load: Makes the float model.
        calib: Images to draw from.
        images, labels: To judge on.
    """

    label: str
    load: Callable[[], nn.Module]
    calib: Tensor
    images: Tensor
    labels: Tensor
    metric: str = 'top-1 in %'
    paper: str | None = None

    def float_figure(self) -> float:
        """See ``Subject``."""
        return self.figure(self.load())

    def batches(self, seed: int, num_images: int) -> Sequence[Tensor]:
        """Images of a calibration, drawn by its seed."""
        order = torch.randperm(len(self.calib), generator=torch.Generator().manual_seed(seed))
        return self.calib[order[:num_images]].split(64)

    def calibrated(self, request: Mapping[str, Any], seed: int, num_images: int,
                   ) -> tuple[nn.Module, float]:
        """See ``Subject``."""
        from mmbitsplit.apis import quantize_model

        model, started = self.load(), time.process_time()
        quantize_model(model, self.batches(seed, num_images),
                       {**request, 'calibration': dict(seed=seed)})
        return model, time.process_time() - started

    def figure(self, model: nn.Module) -> float:
        """See ``Subject``."""
        from benchmarks.cifar import accuracy, predict

        return accuracy(predict(model, self.images), self.labels)


@dataclass(frozen=True, kw_only=True)
class ConfigSubject:
    """A model of mmpretrain or mmdet with a quantization config.

    Args:
        name: As ``bench_model`` knows it.
        data: Folder of its data, the config's own when not given.
        work_dir: For logs.
    """

    name: str
    data: str | None
    work_dir: Path

    def __post_init__(self) -> None:
        from bench.grid import read_config
        from mmbitsplit.apis.from_config import settle_weights
        from mmbitsplit.engine.configs.data_root import move_data
        from mmbitsplit.engine.run.distributed import prepare_config

        cfg = read_config(bench_model(self.name))
        if self.data is not None:
            move_data(cfg, self.data)
        cfg.work_dir = str(self.work_dir)
        settle_weights(cfg, untrained=False)
        prepare_config(cfg)
        object.__setattr__(self, 'cfg', cfg)
        object.__setattr__(self, 'runners', {})  # a model's, by its number

    @property
    def label(self) -> str:
        """See ``Subject``."""
        return bench_model(self.name).label

    @property
    def metric(self) -> str:
        """See ``Subject``."""
        return 'box AP' if bench_model(self.name).detector else 'top-1 in %'

    @property
    def paper(self) -> str | None:
        """See ``Subject``."""
        return PAPER_NAMES.get(self.name)

    def float_figure(self) -> float:
        """See ``Subject``."""
        return self._figure(self._runner(0))

    def calibrated(self, request: Mapping[str, Any], seed: int, num_images: int,
                   ) -> tuple[nn.Module, float]:
        """See ``Subject``."""
        from mmbitsplit.engine.run.quantize import (
            bare_model,
            prepare_data,
            quantize_runner,
            read_spec,
        )

        runner = self._runner(seed)
        calibration = {**self.cfg.quantization.get('calibration', {}), 'seed': seed,
                       'num_images': num_images}
        runner.cfg.quantization = {**request, 'calibration': calibration}
        spec = read_spec(runner.cfg)
        data, started = prepare_data(runner, spec), time.process_time()
        quantize_runner(runner, spec, data)
        spent = time.process_time() - started
        model = bare_model(runner.model)
        self.runners.clear()  # one is held at a time
        self.runners[id(model)] = runner
        return model, spent

    def figure(self, model: nn.Module) -> float:
        """See ``Subject``."""
        return self._figure(self.runners[id(model)])

    def _runner(self, seed: int) -> Any:
        from mmbitsplit.apis.from_config import ready_runner

        return ready_runner(self.cfg.copy(), seed, untrained=False)

    def _figure(self, runner: Any) -> float:
        from mmbitsplit.report.tables import headline_metrics, in_points

        found = runner.test()
        name = headline_metrics({'float': found})[0]
        return in_points(name, found[name])


def subject_of(name: str, data: str | None, weights: str | None, work_dir: Path,
               test_images: int | None = None) -> Subject:
    """A model by its name in ``--model``.

    Args:
        name: Of ``CIFAR``, ``FASHION``, a bench model, or the path of a config.
        data: Folder of its data.
        weights: Folder of the transformer's weights; ``data`` when not given.
        work_dir: For logs of models with configs.
        test_images: To judge on, evenly over the classes; all when not given.

    Raises:
        ValueError: The data are not there or are others, or the model is not known.
    """
    if name not in (*CIFAR, FASHION):
        if test_images is not None:
            raise ValueError(f'--test-images is not supported with --model {name}; its config '
                             'says what it is evaluated on.')
        return ConfigSubject(name=name, data=data, work_dir=work_dir)
    wanted = ('train.npz', 'test.npz') if name == FASHION else ('calib', 'test')
    folder = Path(data) if data is not None else None
    if folder is None or not all((folder / part).exists() for part in wanted):
        script = 'fashion_vit' if name == FASHION else 'cifar'
        raise ValueError(f"--model {name} needs --data, a folder with {' and '.join(wanted)}; see "
                         f'benchmarks/{script}.py for what lies in it.')
    folders = [Path(weights)] if weights is not None else [folder]
    if name == FASHION:
        return _fashion(folder, folders[0], test_images)
    return _cifar(name, folder, folders, test_images)


def _cifar(name: str, data: Path, folders: Sequence[Path], test_images: int | None,
           ) -> ModuleSubject:
    from benchmarks.cifar import NETWORKS, load_images, load_model

    network = NETWORKS[name]
    calib, _ = load_images(data / 'calib', None, network.mean, network.std)
    images, labels = load_images(data / 'test', test_images, network.mean, network.std)
    return ModuleSubject(label=f'{network.label}, CIFAR-10{_part(test_images)}', calib=calib,
                         images=images, labels=labels, load=lambda: load_model(network, folders))


def _fashion(data: Path, folder: Path, test_images: int | None) -> ModuleSubject:
    from benchmarks.fashion_vit import WEIGHTS, load_images, load_model

    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"--weights '{folder}' holds no {WEIGHTS}; python -m "
                         'benchmarks.fashion_vit trains the model and writes it.')
    calib, _ = load_images(data, 'train')
    images, labels = load_images(data, 'test')
    order = torch.argsort(labels, stable=True)  # every so many of each class
    chosen = order[::max(1, len(order) // (test_images or len(order)))][:test_images]
    return ModuleSubject(label=f'ViT, Fashion-MNIST{_part(test_images)}', calib=calib,
                         images=images[chosen], labels=labels[chosen],
                         load=lambda: load_model(file))


def _part(test_images: int | None) -> str:
    return '' if test_images is None else f' ({test_images} test images)'
