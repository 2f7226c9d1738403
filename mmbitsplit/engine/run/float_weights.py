"""Loads float weights; a checkpoint that does not fit is an error, where mmengine only warns."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from mmbitsplit.engine.run.quantize import bare_model
from mmbitsplit.export import PAYLOAD_KEY, PLAN_KEY


def load_weights(runner: Runner) -> None:
    """Loads the checkpoint of a Runner into its float model.

    Raises:
        ValueError: It cannot be read, is a quantized one, or does not fit the model.
    """
    check_float_weights(bare_model(runner.model), runner._load_from)
    runner.load_or_resume()


def check_float_weights(model: nn.Module, checkpoint: str) -> None:
    """Compares a checkpoint with a float model.

    Args:
        model: Before anything is folded or quantized.
        checkpoint: File or address, as mmengine loads it.

    Raises:
        ValueError: It cannot be read, is a quantized one, or tensors are missing or of another
            shape; names them.
    """
    state = _read(checkpoint)
    if PAYLOAD_KEY in state or PLAN_KEY in state:
        raise ValueError(f'{checkpoint} is a quantized checkpoint, and float weights are wanted '
                         'here; what belongs to it is the quantized_config.py beside it.')
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    missing = [name for name in wanted if name not in state and not _optional(name)]
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name]]
    problems = []
    if missing:
        problems.append(f'{len(missing)} tensors are missing (such as {missing[0]})')
    if wrong:
        problems.append(f'{len(wrong)} have another shape (such as {wrong[0]}: '
                        f'{tuple(state[wrong[0]].shape)}, the model has {tuple(wanted[wrong[0]])})')
    if problems and not _converts(model, state):
        raise ValueError(f'The checkpoint {checkpoint} does not fit the model: '
                         f'{" and ".join(problems)}. Pass the checkpoint that belongs to this '
                         'config.')


def forget_pretrained(model: Any) -> None:
    """Drops every ``init_cfg`` of a model's config that would download weights."""
    if isinstance(model, dict):
        init = model.get('init_cfg')
        if isinstance(init, (list, tuple)):
            model['init_cfg'] = [one for one in init if not _downloads(one)]
        elif _downloads(init):
            model['init_cfg'] = None
    for value in model.values() if isinstance(model, dict) else model \
            if isinstance(model, (list, tuple)) else ():
        forget_pretrained(value)


def _downloads(init: Any) -> bool:
    return isinstance(init, Mapping) and init.get('type') == 'Pretrained'


def _optional(name: str) -> bool:
    return name.endswith('num_batches_tracked')  # torch before 0.4.1 had none


def _converts(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the model renames or resizes what older versions of it saved."""
    try:
        missing = copy.deepcopy(model).load_state_dict(dict(state), strict=False).missing_keys
    except RuntimeError:  # another shape
        return False
    return all(_optional(name) for name in missing)


def _read(checkpoint: str) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name, without the prefix of a parallel model."""
    try:
        loaded: Any = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except Exception as error:  # torch and pickle raise all kinds for what is no checkpoint
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split('. ')[0]
        raise ValueError(f'{checkpoint} is truncated, damaged or no checkpoint ({reason}); pass '
                         'the file with the weights that belong to this config.') from error
    state = loaded.get('state_dict', loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f'{checkpoint} holds no weights by name but a {type(loaded).__name__}; '
                         'pass a checkpoint as mmengine or model.state_dict() writes it.')
    return {str(name).removeprefix('module.'): value for name, value in state.items()
            if isinstance(value, Tensor)}
