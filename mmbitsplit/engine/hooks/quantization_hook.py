"""Quantizes before testing: upstream ``tools/test.py`` with one of our configs."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmbitsplit.engine.files.run_lock import only_run_in
from mmbitsplit.engine.results.artifacts import layers_table, save_run
from mmbitsplit.engine.results.visualizer_log import show_layers
from mmbitsplit.engine.run.float_weights import check_float_weights
from mmbitsplit.engine.run.preflight import check_data
from mmbitsplit.engine.run.quantize import (
    bare_model,
    prepare_data,
    quantize_runner,
    read_spec,
    tensor_bytes,
)
from mmbitsplit.engine.run.weight_averages import leave_out_averages
from mmbitsplit.export.writing import check_work_dir
from mmbitsplit.registry import HOOKS


@HOOKS.register_module()
class QuantizationHook(Hook):
    """Quantizes the model when the float weights are in, then lets the test go on.

    ``quantized.pth``, ``quantized_config.py`` and ``layers.json`` are left in the work
    directory. Float figures need ``tools/quantize.py``, which evaluates twice.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self.done = False

    def before_test(self, runner: Runner) -> None:
        if self.done:
            return
        if not runner._has_loaded:
            raise ValueError('There are no float weights to quantize: pass the checkpoint, or '
                             'set load_from in the config.')
        leave_out_averages(runner)
        if runner._load_from is not None:  # else resumed from the last of its work directory
            check_float_weights(bare_model(runner.model), runner._load_from)
        spec = read_spec(runner.cfg)
        if spec.evaluate_widths:
            runner.logger.warning('mmbitsplit: quantization.evaluate_widths=True: this test '
                                  'evaluates the widest alone; mmbitsplit quantize does all.')
        check_data(runner.cfg, spec.calibration)
        work_dir = check_work_dir(runner.work_dir, tensor_bytes(bare_model(runner.model)) // 2)
        with only_run_in(work_dir, runner.rank == 0):
            run = quantize_runner(runner, spec, prepare_data(runner, spec))
            if runner.rank == 0:
                save_run(work_dir, runner.cfg, spec, run,
                               getattr(runner.test_loop.dataloader.dataset, 'metainfo', None))
                show_layers(runner.visualizer, layers_table(run)['layers'])
        self.done = True
