"""Trains a float demo model with the stock mmengine Runner and exports its weights in half size."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmbitsplit.cli  # noqa: E402, F401  before torch: its threads wait without spinning

# isort: split
import torch  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from mmbitsplit.files import replacing  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: Arguments without the program's name, those of the process where None.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='training config')
    parser.add_argument('--work-dir', help='logs and checkpoints; work_dirs/NAME if not given')
    parser.add_argument('--export', help='file for the final weights, floats as fp16')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on from the newest checkpoint in the work directory',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value ...')
    return parser.parse_args(argv)


def half_precision_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies a model's state with its floating-point tensors rounded to fp16.

    Args:
        model: Any module.

    Returns:
        Its ``state_dict`` on the CPU, other types unchanged.

    Raises:
        ValueError: If a value does not fit into fp16.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu().clone()
        if value.is_floating_point():
            value = value.half()
            if not torch.isfinite(value).all():
                raise ValueError(f'{name} holds values that fp16 cannot; export is not possible')
        state[name] = value
    return state


def export_weights(runner: Runner, path: Path, meta: dict[str, Any]) -> dict[str, float]:
    """Rounds the model's weights to fp16, evaluates it with them, and saves them.

    Args:
        runner: After training; its model keeps the rounded weights.
        path: File to write.
        meta: Saved beside the weights, with the metrics added.

    Returns:
        The test metrics of the rounded weights.
    """
    model = runner.model
    state = half_precision_state(model)
    model.load_state_dict(state)
    metrics = {name: float(value) for name, value in runner.test().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        torch.save({'state_dict': state, 'meta': {**meta, 'metrics': metrics}}, file)
    return metrics


def main(argv: list[str] | None = None) -> int:
    """Trains, then exports if asked to.

    Args:
        argv: Arguments without the program's name, those of the process where None.

    Returns:
        The exit status.
    """
    args = parse_args(argv)
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    config.work_dir = args.work_dir or f'work_dirs/{Path(args.config).stem}'
    config.resume = args.resume or config.get('resume', False)
    runner = Runner.from_cfg(config)
    started = time.perf_counter()
    runner.train()
    minutes = (time.perf_counter() - started) / 60.0
    print(f'trained for {minutes:.1f} minutes with {torch.get_num_threads()} thread(s)')
    if args.export:
        words = ['python', 'tools/train.py', *(sys.argv[1:] if argv is None else argv)]
        versions = {name: _version(name) for name in ('torch', 'mmengine', 'mmcv')}
        scope = config.get('default_scope', 'mmengine')
        versions[scope] = _version(scope)
        meta = {
            'command': shlex.join(words),
            'seed': int(runner.seed),
            'versions': versions,
        }
        metrics = export_weights(runner, Path(args.export), meta)
        size = Path(args.export).stat().st_size
        print(f'exported {args.export}, {size} bytes, metrics with these weights: {metrics}')
    return 0


def _version(package: str) -> str:
    return str(__import__(package).__version__)


if __name__ == '__main__':
    sys.exit(main())
