"""The command-line tools on the demo, with few images."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/retinanet_digits_w4a8.py'


# What the set-up arranges for every start of the interpreter; upstream tools need it where
# torchvision's compiled part does not load.
UPSTREAM = ('import runpy, sys; '
            'from mmbitsplit.compat.torchvision_ops import install_import_hook; '
            'install_import_hook(); sys.argv = sys.argv[1:]; '
            'runpy.run_path(sys.argv[0], run_name="__main__")')


@pytest.fixture(scope='session')
def run_tool(tool_server):
    """Runs a script from the project's folder; one thread, so that figures repeat exactly."""
    def run(script, *args, upstream: bool = False):
        return tool_server.run([*(['-c', UPSTREAM] if upstream else []), str(script),
                                *map(str, args)])

    return run


@pytest.fixture(scope='session')
def find_upstream_test():
    """Returns a package's own tools/test.py."""
    def find(package):
        path = Path(find_spec(package).origin).parent / '.mim/tools/test.py'
        if not path.is_file():
            pytest.skip(f'this {package} comes without its tools')
        return path
    return find


@pytest.fixture(scope='session')
def small_evaluation(tmp_path_factory):
    """Config options that evaluate on 40 images and calibrate on 8."""
    # The metric compares with its whole annotation file, so the file itself must be short.
    source = PROJECT / 'data/digits/annotations/instances_val.json'
    content = json.loads(source.read_text())
    content['images'] = content['images'][:40]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [annotation for annotation in content['annotations']
                              if annotation['image_id'] in kept]
    path = tmp_path_factory.mktemp('annotations') / 'val40.json'
    path.write_text(json.dumps(content))
    return [f'test_dataloader.dataset.ann_file={path}', f'test_evaluator.ann_file={path}',
            'quantization.calibration.num_images=8',
            'quantization.calibration.rows_per_layer=4096']


@pytest.fixture(scope='session')
def quantized(run_tool, small_evaluation, tmp_path_factory):
    """Work directory and output of one run of tools/quantize.py, which processes share."""
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    work_dir, output = folder / 'quantized', folder / 'quantized.txt'
    with FileLock(folder / 'quantized.lock'):
        if not output.exists():
            # In float: upstream's tools compute so, to the last digit.
            done = run_tool('tools/quantize.py', CONFIG, '--work-dir', work_dir, '--integer',
                            'off', '--cfg-options', *small_evaluation)
            assert done.returncode == 0, done.stderr[-3000:]
            output.write_text(done.stdout, encoding='utf-8')
    return work_dir, output.read_text(encoding='utf-8')
