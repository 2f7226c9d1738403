"""Upstream's ways to load a model give exactly what the model predicted that was saved."""

import json
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from width_solutions import with_narrower

from mmbitsplit.apis import bits_of, load_quantized, widths_of
from mmbitsplit.apis.checkpoint_files import convert_checkpoint
from mmbitsplit.apis.split_files import join_files, split_file
from mmbitsplit.calibration import calibrate
from mmbitsplit.engine.data.calibration_data import load_calibration_data
from mmbitsplit.engine.results.artifacts import save_run
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.quantize import QuantizedRun, read_spec, tensor_bytes
from mmbitsplit.export import read_checkpoint

PROJECT = Path(__file__).resolve().parents[2]
IMAGES = 3
# Files of a run, the data set, paths of images and what the saved model made of them.
Saved = namedtuple('Saved', 'config checkpoint dataset paths predictions sizes')


def quantize_and_save(scope: str, name: str, folder: Path) -> Saved:
    """Quantizes a demo model in this process on few images and saves it."""
    with DefaultScope.overwrite_default_scope(scope):
        cfg = Config.fromfile(f'configs/demo/{name}.py')
        cfg.quantization.calibration.update(num_images=4, rows_per_layer=512)
        if cfg.get('data_preprocessor') is not None:  # as a Runner does
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, cfg.load_from, map_location='cpu')
        spec, float_bytes = read_spec(cfg), tensor_bytes(model)
        data = load_calibration_data(cfg, spec.calibration, [])
        prepared, report = calibrate(
            model, data.batches, spec, run=lambda model, batch: model.test_step(batch),
            replay_points=replay_points(model), labels=data.labels)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        cfg = Config.fromfile(f'configs/demo/{name}.py')  # as the user has it
        sizes = save_run(folder, cfg, spec, QuantizedRun(prepared, report, data,
                                                               float_bytes), dataset.metainfo)
        paths = [dataset.get_data_info(index)['img_path'] for index in range(IMAGES)]
        with torch.no_grad():
            predictions = [prepared.model.test_step(pseudo_collate([dataset[index]]))[0]
                           for index in range(IMAGES)]
    return Saved(folder / 'quantized_config.py', folder / 'quantized.pth', dataset, paths,
                 predictions, sizes)


@pytest.fixture(scope='module', autouse=True)
def scope():
    """From the project's folder, one thread; upstream's functions change the default scope."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope(None):
        patch.chdir(PROJECT)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    return quantize_and_save('mmdet', 'retinanet_digits_w4a8', tmp_path_factory.mktemp('det'))


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    from mmpretrain.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    return quantize_and_save('mmpretrain', 'classifier_digits_w4a8',
                             tmp_path_factory.mktemp('cls'))


def assert_same_boxes(found, expected):
    assert len(expected) > 3
    for name in ('bboxes', 'scores', 'labels'):
        assert torch.equal(found[name], expected[name]), name


def test_init_detector_and_inference_detector(detector):
    from mmdet.apis import inference_detector, init_detector
    model = init_detector(str(detector.config), str(detector.checkpoint), device='cpu')
    assert list(model.dataset_meta['classes']) == list(detector.dataset.metainfo['classes'])
    for path, expected in zip(detector.paths, detector.predictions):
        found = inference_detector(model, path)
        assert_same_boxes(found.pred_instances, expected.pred_instances)


def test_a_file_of_safetensors_loads_the_same(detector, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    written, _ = convert_checkpoint(detector.checkpoint, tmp_path / 'quantized.safetensors')
    ours = load_quantized(detector.config, written)
    assert ours.dataset_meta == load_quantized(detector.config, detector.checkpoint).dataset_meta
    model = init_detector(str(detector.config), str(written), device='cpu')
    assert all(torch.equal(value, ours.state_dict()[name])
               for name, value in model.state_dict().items())
    found = inference_detector(model, detector.paths[0])
    assert_same_boxes(found.pred_instances, detector.predictions[0].pred_instances)


def test_det_inferencer(detector):
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(str(detector.config), str(detector.checkpoint), device='cpu',
                               show_progress=False)
    found = inferencer(detector.paths, return_datasamples=True, no_save_vis=True,
                       no_save_pred=True)['predictions']
    for one, expected in zip(found, detector.predictions, strict=True):
        assert_same_boxes(one.pred_instances, expected.pred_instances)


def test_classification_inferencer(classifier):
    from mmpretrain import ImageClassificationInferencer
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # as in a process of its own
        inferencer = ImageClassificationInferencer(str(classifier.config),
                                                   pretrained=str(classifier.checkpoint))
        found = inferencer(classifier.paths)
    for one, expected in zip(found, classifier.predictions, strict=True):
        assert torch.equal(torch.as_tensor(one['pred_scores']), expected.pred_score)
        assert one['pred_class'] == classifier.dataset.metainfo['classes'][
            int(expected.pred_label)]


@pytest.mark.parametrize('which', ['detector', 'classifier'])
def test_load_quantized(which, request):
    saved = request.getfixturevalue(which)
    model = load_quantized(saved.config, saved.checkpoint, device='cpu')
    assert not model.training and model.cfg.test_dataloader
    assert list(model.dataset_meta['classes']) == list(saved.dataset.metainfo['classes'])
    for index, expected in enumerate(saved.predictions):
        with torch.no_grad():
            found = model.test_step(pseudo_collate([saved.dataset[index]]))[0]
        if which == 'detector':
            assert_same_boxes(found.pred_instances, expected.pred_instances)
        else:
            assert torch.equal(found.pred_score, expected.pred_score)


@pytest.mark.parametrize('which', ['detector', 'classifier'])
def test_the_file_is_small(which, request):
    """Even files of one megabyte and less are little more than their payload."""
    sizes = request.getfixturevalue(which).sizes
    assert sizes['quantized_payload'] < 0.16 * sizes['float']
    assert sizes['quantized_checkpoint'] < 1.05 * sizes['quantized_payload']


def test_damage_is_refused_by_upstream_functions(detector, tmp_path):
    from mmdet.apis import init_detector
    data = bytearray(detector.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'damaged.pth').write_bytes(data)
    with pytest.raises(ValueError, match='1 tensor.* damaged'):
        init_detector(str(detector.config), str(tmp_path / 'damaged.pth'), device='cpu')


def test_another_architecture_is_refused_by_upstream_functions(detector):
    from mmdet.apis import init_detector
    for options, message in (
            ({'model.backbone.depth': 34}, "does not fit|not in the model|Layer '"),
            ({'model.bbox_head.stacked_convs': 3}, 'lacks|not in the model|of shape'),
            ({'model.bbox_head.num_classes': 11}, 'of shape')):
        with pytest.raises(ValueError, match=message):
            init_detector(str(detector.config), str(detector.checkpoint), device='cpu',
                          cfg_options=options)


# Several widths.

@pytest.fixture(scope='module')
def several(classifier, tmp_path_factory):
    """The classifier's file with narrower widths, and a config with a place for the one to use."""
    folder = tmp_path_factory.mktemp('several')
    model = load_quantized(classifier.config, classifier.checkpoint)
    packed = with_narrower(model.model, read_checkpoint(classifier.checkpoint))
    torch.save(packed, folder / 'quantized.pth')
    cfg = Config.fromfile(classifier.config)
    cfg.model.quantized_bits = None
    cfg.dump(folder / 'quantized_config.py')
    return folder


def scores(model, classifier, index=0):
    with torch.no_grad():
        return model.test_step(pseudo_collate([classifier.dataset[index]]))[0].pred_score


def load_several(several, **options):
    return load_quantized(several / 'quantized_config.py', several / 'quantized.pth', **options)


def test_upstream_loads_several_widths_at_the_widest(classifier, several):
    from mmpretrain.apis import get_model
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = get_model(Config.fromfile(several / 'quantized_config.py'),
                          str(several / 'quantized.pth'))
    assert torch.equal(scores(model, classifier), classifier.predictions[0].pred_score)
    assert {max(one.weight) for one in widths_of(model).values()} == {4, 8}


def test_the_config_says_which_width_upstream_uses(classifier, several):
    from mmpretrain.apis import get_model
    cfg = Config.fromfile(several / 'quantized_config.py')
    cfg.model.quantized_bits = dict(weight=2, activation=3)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = get_model(cfg, str(several / 'quantized.pth'))
    switched = load_several(several)
    switched.set_bits(weight=2, activation=3)
    found = scores(model, classifier)
    assert torch.equal(found, scores(switched, classifier))
    assert not torch.equal(found, classifier.predictions[0].pred_score)


@pytest.mark.parametrize('bits', [3, dict(weight=3), dict(activation=2), 'plan'], ids=str)
def test_a_file_is_loaded_at_a_width(bits, classifier, several, tmp_path):
    switched = load_several(several)
    if bits == 'plan':
        name = next(name for name, widths in widths_of(switched).items() if widths.input)
        bits = tmp_path / 'plan.json'
        bits.write_text(json.dumps({'format': 1, 'layers': [
            {'name': name, 'weight_bits': 2, 'input_bits': 4}]}))
        switched.set_plan(bits)
    elif isinstance(bits, int):
        switched.set_bits(bits)
    else:
        switched.set_bits(**bits)
    model = load_several(several, bits=bits)
    assert bits_of(model) == bits_of(switched)
    assert torch.equal(scores(model, classifier), scores(switched, classifier))


def test_a_width_that_is_not_there_is_refused(several):
    with pytest.raises(ValueError, match=r'7'):
        load_several(several, bits=7)
    with pytest.raises(ValueError, match="quantized_bits={'weights': 3} is not supported"):
        load_several(several, bits=dict(weights=3))


def test_the_first_files_of_a_split_checkpoint_load(classifier, several, tmp_path):
    files = split_file(several / 'quantized.pth', tmp_path)
    assert list(files) == [0, 3, 4, 5, 6, 7, 8]
    config = several / 'quantized_config.py'
    whole = load_several(several)
    for given, most in (([0], 2), ([0, 3], 3), ([0, 3, 4], 4)):
        paths = [files[width] for width in given]
        model = load_quantized(config, paths[0] if len(paths) == 1 else paths)
        assert {max(one.weight) for one in widths_of(model).values()} == {most}
        whole.set_bits(weight=most)
        assert torch.equal(scores(model, classifier), scores(whole, classifier))
    joined = join_files(files[0], [files[width] for width in (3, 4, 5, 6, 7, 8)],
                        tmp_path / 'joined.pth')
    first, second = (torch.load(path) for path in (joined, several / 'quantized.pth'))
    assert all(torch.equal(value, second['state_dict'][key])
               for key, value in first['state_dict'].items())
    with pytest.raises(ValueError, match='is one of the files that are joined'):
        join_files(files[0], [], files[0])
