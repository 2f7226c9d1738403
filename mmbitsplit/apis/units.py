"""From a config to the units of its model: what ``mmbitsplit units`` prints."""

from typing import Any

from mmengine.config import Config

from mmbitsplit.apis.from_config import runner_with_weights, settle_weights
from mmbitsplit.engine.data.synthetic_images import reach_all_stages, synthetic_batches
from mmbitsplit.engine.run.preflight import check_data
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.quantize import bare_model, prepare_data, read_spec
from mmbitsplit.planning import check_request
from mmbitsplit.planning.preparation import divide_as_requested


def units_of_config(cfg: Config, *, untrained: bool = False,
                    synthetic: bool = False) -> list[dict[str, Any]]:
    """Divides a config's model into units; nothing is quantized.

    Args:
        cfg: Config with a ``quantization`` dict, ``work_dir`` (of mmengine's log) and
            ``load_from``. Calibration images are run through the model.
        untrained: Leave the weights random.
        synthetic: Run made-up images of the test pipeline's size instead; no data set is read.

    Returns:
        A dict a unit: the fields of ``structures.Unit``, ``kind`` (the class of its first module)
        and ``num_weights`` (of its layers).

    Raises:
        ValueError: The user can mend it; see ``quantize_config``.
    """
    spec = read_spec(cfg)
    if synthetic:
        cfg = cfg.copy()
        reach_all_stages(cfg.model)
    else:
        check_data(cfg, spec.calibration)
    settle_weights(cfg, untrained)
    runner = runner_with_weights(cfg, spec.calibration.seed, untrained)
    model = bare_model(runner.model)
    if synthetic:
        check_request(model, spec)
        # Of two images where the request has more than one: LeNet cannot do with one.
        batches = synthetic_batches(cfg, 1, min(2, spec.calibration.batch_size))
        labels = ['a made-up image']
    else:
        data = prepare_data(runner, spec)
        batches, labels = data.batches, data.labels
    units = divide_as_requested(model, batches, spec,
                                run=lambda model, batch: model.test_step(batch),
                                replay_points=replay_points(model), labels=labels)
    return [{**vars(unit), 'kind': type(model.get_submodule(unit.name)).__name__,
             'num_weights': sum(model.get_submodule(name).weight.numel() for name in unit.layers)}
            for unit in units]
