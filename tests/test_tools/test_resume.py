"""tools/quantize.py, really killed, goes on with --resume and ends as if nothing had happened."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/classifier_digits_w4a8.py'
WEIGHTS = 'demo/weights/classifier_digits_float.pth'
LAYERS = 21
FEW = ['quantization.calibration.num_images=32', 'quantization.calibration.batch_size=16',
       'quantization.calibration.rows_per_layer=256', 'quantization.weight.scale_search=minmax',
       'quantization.activation.strength=0.5', 'quantization.method.init=mse',
       'quantization.method.max_sweeps=5', 'test_dataloader.dataset.indices=256']
FLOAT, QUANTIZED = 'evaluating the float model', 'evaluating the quantized model'
# Starts the tool several times in one process, which spares the imports.
SEVERAL = ('import json, runpy, sys\n'
           'for args in json.loads(sys.argv[1]):\n'
           '    sys.argv = ["tools/quantize.py", *args]\n'
           '    try:\n'
           '        runpy.run_path(sys.argv[0], run_name="__main__")\n'
           '    except SystemExit as end:\n'
           '        print(f"ended with {end.code}", file=sys.stderr, flush=True)\n')


def arguments(work_dir: Path, *more: str) -> list[str]:
    """Command line of a resuming run; ``key=value`` are options, the rest comes before."""
    options = [part for part in more if '=' in part]
    rest = [part for part in more if '=' not in part]
    return [CONFIG, *rest, '--work-dir', str(work_dir), '--resume', '--cfg-options', *FEW,
            *options]


@pytest.fixture
def killed(tool_server):
    """Resumes a run, kills it and all it has started when ``ready``; returns its output."""
    def kill(work_dir: Path, log: Path, ready: Callable[[], bool]) -> str:
        with tool_server.running(['tools/quantize.py', *arguments(work_dir)], log) as run:
            end = time.monotonic() + 300
            while not ready():
                assert run.poll() is None, f'it ended too early: {run.output()[-3000:]}'
                assert time.monotonic() < end, f'it takes too long: {run.output()[-3000:]}'
                time.sleep(0.005)
            run.kill()
            assert run.wait() == -signal.SIGKILL
        return log.read_text()
    return kill


def solved(work_dir: Path) -> list[str]:
    return sorted(path.name for path in (work_dir / 'journal').glob('*.layer'))


def header(work_dir: Path) -> dict:
    return json.loads((work_dir / 'journal/header.json').read_text())


def results_of(work_dir: Path) -> dict:
    """All of results.json but what depends on the time of day and on interruptions."""
    results = json.loads((work_dir / 'results.json').read_text())
    assert results.pop('seconds')['calibration'] > 0 and results.pop('peak_rss_bytes') > 0
    for name in ('estimated_bytes', 'size_bytes'):
        assert results.pop(name)
    results['calibration'].pop('layers_taken_over')
    return results


def rows_of(work_dir: Path) -> list[dict]:
    rows = json.loads((work_dir / 'layers.json').read_text())['layers']
    return [{**row, 'seconds': None} for row in rows]


def state_of(work_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / 'quantized.pth', weights_only=True)['state_dict']


def snapshot(work_dir: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of a run's files."""
    names = ('results.json', 'quantized.pth', 'layers.json', 'quantized_config.py',
             'journal/header.json')
    return {name: ((work_dir / name).read_bytes(), (work_dir / name).stat().st_mtime_ns)
            for name in names}


@pytest.fixture(scope='module')
def whole(run_tool, tmp_path_factory):
    """Work directory and output of a run that nothing interrupts, with nothing to resume."""
    work_dir = tmp_path_factory.mktemp('whole') / 'new'
    done = run_tool('tools/quantize.py', *arguments(work_dir))
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir, done.stdout + done.stderr


def test_with_nothing_to_resume_it_just_runs(whole):
    work_dir, output = whole
    assert 'no solved layers to take over' in output
    assert FLOAT in output and QUANTIZED in output
    assert len(rows_of(work_dir)) == LAYERS and solved(work_dir) == []
    assert header(work_dir)['finished']
    results = json.loads((work_dir / 'results.json').read_text())
    assert results['calibration']['layers_taken_over'] == 0
    assert results['quantized']['accuracy/top1'] > 85


def test_killed_again_and_again_it_ends_the_same(whole, killed, run_tool, tmp_path):
    work_dir, log = tmp_path / 'run', tmp_path / 'log'

    def killed_when(ready: Callable[[], bool]) -> str:
        return killed(work_dir, log, ready)

    # In the float evaluation: nothing is kept yet.
    killed_when(lambda: FLOAT in log.read_text())
    assert header(work_dir)['facts'] == {} and solved(work_dir) == []

    # Among the first layers: the float figures are kept, and every layer so far.
    output = killed_when((work_dir / 'journal/0002.layer').exists)
    assert FLOAT in output and 'going on after' not in output
    first = len(solved(work_dir))
    assert 3 <= first < LAYERS and 'accuracy/top1' in header(work_dir)['facts']['float']['metrics']

    # Further on.
    output = killed_when((work_dir / f'journal/{first + 4:04d}.layer').exists)
    assert f'going on after {first} solved layers' in output and FLOAT not in output
    assert first + 5 <= len(solved(work_dir)) < LAYERS
    last = work_dir / 'journal' / solved(work_dir)[-1]
    kept = int(last.stem)
    last.write_bytes(last.read_bytes()[:-1000])  # as a file system may leave it after a crash

    # In the quantized evaluation: all layers are there, figures are not.
    output = killed_when(lambda: QUANTIZED in log.read_text())
    assert f'{last} is truncated or damaged' in output and 'its layer is solved again' in output
    assert f'going on after {kept} solved layers' in output and FLOAT not in output
    assert len(solved(work_dir)) == LAYERS and not header(work_dir)['finished']
    assert not (work_dir / 'results.json').exists()

    done = run_tool('tools/quantize.py', *arguments(work_dir))
    output = done.stdout + done.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'going on after {LAYERS} solved layers' in output and FLOAT not in output
    assert f'{LAYERS} of them were taken over' in output and QUANTIZED in output
    assert header(work_dir)['finished'] and solved(work_dir) == []

    ours, theirs = state_of(work_dir), state_of(whole[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results_of(work_dir) == results_of(whole[0])
    assert rows_of(work_dir) == rows_of(whole[0])
    ours, theirs = ((folder / 'quantized_config.py').read_text()
                    for folder in (work_dir, whole[0]))
    assert ours == theirs
    assert not [path.name for path in work_dir.rglob('.*')]
    # The report too: what the float model said of each image outlived the interruptions.
    ours, theirs = ((folder / 'report_data.json').read_text() for folder in (work_dir, whole[0]))
    assert ours == theirs and json.loads(ours)['pictures']['items']
    assert (work_dir / 'report.html').is_file()
    assert not (work_dir / 'journal/float_record.json').exists()


def test_a_finished_run_is_not_run_again(whole, run_tool, tmp_path):
    before = snapshot(whole[0])
    weights = tmp_path / 'copy.pth'  # the same weights in another file are no other weights
    torch.save(torch.load(PROJECT / WEIGHTS, weights_only=True), weights)
    done = run_tool('tools/quantize.py', *arguments(
        whole[0], str(weights), 'quantization.calibration.memory_budget=3'))
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'holds the results of this very run' in done.stdout + done.stderr
    assert 'evaluating' not in done.stdout + done.stderr
    metric = json.loads((whole[0] / 'results.json').read_text())['quantized']['accuracy/top1']
    assert f'{metric:.2f}' in done.stdout and f'Files are in {whole[0]}' in done.stdout
    assert snapshot(whole[0]) == before


def test_what_differs_is_refused_by_name(whole, run_tool, tmp_path):
    checkpoint = torch.load(PROJECT / WEIGHTS, weights_only=True)
    checkpoint['state_dict']['head.fc.weight'][3, 5] += 1e-4
    torch.save(checkpoint, tmp_path / 'other.pth')
    refused = {
        ('--weight-bits', '3'): ('quantization.weight.num_bits is 3, the journal has 4',),
        ('--seed', '1'): ('quantization.calibration.seed is 1, the journal has 0',
                          'calibration images differ', 'calibration files differ'),
        ('quantization.calibration.num_images=16',): (
            'quantization.calibration.num_images is 16, the journal has 32',
            'calibration images has 16 items, the journal 32'),
        (str(tmp_path / 'other.pth'),): ('resumed: weights differ (sha256 ',),
        ('data_preprocessor.mean=[120.5,116.28,103.53]',): (
            '1 of 3 data_preprocessor.mean differ, such as 120.5',),
    }
    before = snapshot(whole[0])
    done = run_tool('-c', SEVERAL, json.dumps([arguments(whole[0], *more) for more in refused]))
    lines = [line for line in done.stderr.splitlines()
             if line.startswith(('error: ', 'ended with '))]
    assert lines[1::2] == ['ended with 2'] * len(refused), done.stderr[-3000:]
    for error, (more, named) in zip(lines[::2], refused.items(), strict=True):
        assert all(part in error for part in ('cannot be resumed', *named)), (more, error)
        assert error.endswith('Run without --resume to start again, or use another work directory.')
    assert snapshot(whole[0]) == before
