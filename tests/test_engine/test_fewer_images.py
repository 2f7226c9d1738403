"""A part of the evaluation set is evaluated as if it were all."""

import pytest

from mmbitsplit.apis.from_config import build_runner
from mmbitsplit.engine.data.fewer_images import choose_images, count_only_evaluated
from mmbitsplit.engine.run.float_weights import load_weights


@pytest.fixture
def runner_of(demo_config, det_scope, tmp_path):
    def make(count):
        cfg = demo_config()
        cfg.work_dir = str(tmp_path)
        choose_images(cfg, count)
        runner = build_runner(cfg, 0)
        load_weights(runner)
        count_only_evaluated(runner)
        return runner
    return make


@pytest.mark.parametrize('count, expected', [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]),
                                             (50, [1, 2, 3])])
def test_images_at_even_steps_are_the_only_ones(runner_of, count, expected):
    runner = runner_of(count)
    loop = runner.test_loop
    ids = [sample.img_id for batch in loop.dataloader for sample in batch['data_samples']]
    assert ids == expected == loop.evaluator.metrics[0].img_ids


def test_a_wrapped_data_set_is_refused(demo_config):
    cfg = demo_config()
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        cfg.test_dataloader.dataset.to_dict()])
    with pytest.raises(ValueError, match='--metric-images=2.*ConcatDataset'):
        choose_images(cfg, 2)
