"""Completes what a command is given: a config by name alone is a whole request."""

import argparse
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmbitsplit.cli.command import is_first_process, say
from mmbitsplit.cli.config_arguments import read_config
from mmbitsplit.engine.configs.default_request import fill_request
from mmbitsplit.engine.configs.upstream_configs import is_upstream_name, published_weights


def read_request_config(args: argparse.Namespace, changes: Mapping[str, Any] | None = None,
                        ) -> Config:
    """Reads a config to be quantized; says what it was given that it does not hold itself.

    A config without a ``quantization`` dict gets the usual one for its task. Weights are those of
    CHECKPOINT, else of ``--cfg-options load_from=...``, else, of a config by name, those that its
    package publishes for it, else of the config's ``load_from``.

    Args:
        args: Parsed; with ``config`` and ``checkpoint``, and ``untrained`` where there is that.
        changes: See ``read_config``.

    Raises:
        ValueError: See ``read_config``; or the task or the weights cannot be found out.
    """
    cfg = read_config(args, changes, _fill)
    if args.checkpoint is not None:
        cfg.load_from = args.checkpoint
    elif 'load_from' not in (args.cfg_options or {}) and is_upstream_name(args.config) \
            and not getattr(args, 'untrained', False):
        # A load_from of upstream's is what training begins with, not what comes of it.
        weights = published_weights(args.config)
        cfg.load_from = weights.address
        note(f'float weights are those of {weights.name}, {weights.address}'
              + (f' ({len(weights.others)} more are published for this config; pass one as '
                 'CHECKPOINT to use it)' if weights.others else ''))
    return cfg


def _fill(cfg: Config) -> None:
    task = fill_request(cfg)
    if task is not None:
        calibration = cfg.quantization.calibration
        note(f"the config has no 'quantization' dict; it gets the usual one for {task}: "
              f'{calibration.num_images} calibration images, {calibration.batch_size} a batch')


def note(message: str) -> None:
    """Says what was chosen, in the first process."""
    if is_first_process():
        say('note', message)
