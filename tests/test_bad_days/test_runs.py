"""Whole runs on a bad day: Ctrl-C, a second run, a full disk, a broken image, odd paths."""

import errno
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import Journal, calibrate
from mmbitsplit.cli.main import main
from mmbitsplit.structures import QuantSpec

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/classifier_digits_w4a8.py'
LAYERS = 21
FEW = ['quantization.calibration.num_images=41', 'quantization.calibration.batch_size=16',
       'quantization.calibration.rows_per_layer=256', 'quantization.weight.scale_search=minmax',
       'quantization.activation.strength=0.5', 'quantization.method.init=mse',
       'quantization.method.max_sweeps=5', 'test_dataloader.dataset.indices=128']


def prepare_folder(root: Path) -> list[str]:
    """A data set of 40 images and a broken one, weights, all below a name with spaces."""
    for label in range(10):
        folder = root / 'Daten – 数据' / 'cls_train' / str(label)
        folder.mkdir(parents=True)
        source = PROJECT / f'data/digits/cls_train/{label}'
        for path in sorted(source.iterdir())[:4]:
            shutil.copy(path, folder / f'Bild {path.name}')
    (folder / 'kaputt.png').write_bytes(b'no picture')
    shutil.copy(PROJECT / 'demo/weights/classifier_digits_float.pth', root / 'Gewichte ü.pth')
    return [CONFIG, str(root / 'Gewichte ü.pth'), '--work-dir', str(root / 'Lauf ä 走'),
            '--cfg-options', *FEW,
            f'train_dataloader.dataset.data_root={root / "Daten – 数据"}']


@pytest.fixture(scope='module')
def bad_day(tool_server, tmp_path_factory):
    """A real run that is joined by a second one, interrupted by Ctrl-C, and resumed."""
    root = tmp_path_factory.mktemp('bad day ü')
    arguments = prepare_folder(root)
    work_dir = root / 'Lauf ä 走'
    with tool_server.running(['-m', 'mmbitsplit', 'quantize', *arguments], root / 'log') as run:
        end = time.monotonic() + 300
        while not (work_dir / 'journal/0002.layer').exists():
            assert run.poll() is None and time.monotonic() < end, run.output()[-3000:]
            time.sleep(0.005)
        solved = len((work_dir / 'layers.jsonl').read_text().splitlines())
        os.kill(run.pid, signal.SIGSTOP)  # or it would be done before the second one asks
        second = second_run([*arguments, '--resume'])
        os.kill(run.pid, signal.SIGINT)
        os.kill(run.pid, signal.SIGCONT)
        code = run.wait()
    output = run.output()
    again = shlex.split(output.splitlines()[-1].partition('go on with: ')[2])
    return SimpleNamespace(work_dir=work_dir, code=code, output=output, again=again,
                           resumed=tool_server.run(['-m', *again]), solved=solved, second=second,
                           pid=run.pid)


def second_run(arguments: list[str]) -> tuple[int, str]:
    """Runs the command in this process; returns status and what it said."""
    import contextlib
    import io
    said, here = io.StringIO(), os.getcwd()
    os.chdir(PROJECT)
    try:
        with contextlib.redirect_stderr(said):
            return main(['quantize', *arguments]), said.getvalue()
    finally:
        os.chdir(here)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(bad_day):
    assert bad_day.code == 130
    last = bad_day.output.splitlines()[-1]
    assert last.startswith('interrupted: figures and layers that were done are kept; go on with: '
                           f'mmbitsplit quantize {CONFIG} ')
    assert last.endswith(' --resume') and 'Traceback' not in bad_day.output
    assert not (bad_day.work_dir / '.running.json').exists()


def test_layers_are_logged_while_the_run_goes_on(bad_day):
    assert 2 <= bad_day.solved < LAYERS  # the third may be in the journal already
    rows = [json.loads(line)
            for line in (bad_day.work_dir / 'layers.jsonl').read_text().splitlines()]
    table = json.loads((bad_day.work_dir / 'layers.json').read_text())['layers']
    assert [row['name'] for row in rows] == [row['name'] for row in table]
    assert [(row['layer'], row['of']) for row in rows] \
        == [(number + 1, LAYERS) for number in range(LAYERS)]


def test_what_it_says_goes_on_and_ends_well(bad_day):
    done = bad_day.resumed
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'going on after' in done.stdout + done.stderr
    results = json.loads((bad_day.work_dir / 'results.json').read_text())
    assert 3 <= results['calibration']['layers_taken_over'] <= LAYERS
    assert results['quantized']['accuracy/top1'] > 80
    assert (bad_day.work_dir / 'quantized.pth').is_file()


def test_a_broken_image_is_counted_in_log_and_results(bad_day):
    results = json.loads((bad_day.work_dir / 'results.json').read_text())
    (path, reason), = results['calibration']['unreadable_images'].items()
    assert path.endswith('kaputt.png') and reason
    assert len(results['calibration']['image_ids']) == 40
    assert '1 of 41 calibration images cannot be read' in bad_day.output


def test_unicode_and_spaces_in_every_path(bad_day):
    results = json.loads((bad_day.work_dir / 'results.json').read_text())
    assert all(str(name).startswith('Bild ') for name in results['calibration']['image_ids'])
    assert f"Files are in {bad_day.work_dir}" in bad_day.resumed.stdout


def test_a_second_run_in_the_work_directory_is_refused(bad_day):
    code, said = bad_day.second
    assert code == 2
    line, = (line for line in said.splitlines() if line.startswith('error: '))
    assert f'Another run works in {bad_day.work_dir} (process {bad_day.pid} on ' in line
    assert line.endswith('choose another directory with --work-dir.')


def small() -> tuple[nn.Module, list[torch.Tensor], QuantSpec]:
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    batches = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    return nn.Sequential(*layers), batches, QuantSpec.from_dict(
        dict(calibration=dict(rows_per_layer=128)))


def solve(journal: Journal | None, run=lambda model, batch: model(batch)):
    model, batches, spec = small()
    _, report = calibrate(model, batches, spec, run=run, journal=journal)
    return model.state_dict(), report


def same(ours: dict, theirs: dict) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_disk_that_is_full_in_the_middle_is_said_and_resumed(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full_after_some(descriptor):
        calls.append(descriptor)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full_after_some)
        with pytest.raises(ValueError, match=r'\.layer cannot be written: .*No space left.*free '
                                             'some space'):
            solve(Journal.open(tmp_path, {'of': 'this'}, resume=False))
    assert not list(tmp_path.glob('.*'))
    journal = Journal.open(tmp_path, {'of': 'this'}, resume=True)
    assert 0 < len(journal.entries) < 6
    state, report = solve(journal)
    assert report.calibration['layers_taken_over'] == len(journal.entries)
    assert same(state, solve(None)[0])


def test_ctrl_c_in_the_middle_of_a_forward_loses_no_solved_layer(tmp_path):
    layers = []

    def interrupted(model, batch):
        if not layers:
            for layer in model:
                layer.register_forward_hook(lambda *_: layers.append(0) or press())
        return model(batch)

    def press():
        if len(list(tmp_path.glob('*.layer'))) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(Journal.open(tmp_path, {'of': 'this'}, resume=False), interrupted)
    journal = Journal.open(tmp_path, {'of': 'this'}, resume=True)
    assert len(journal.entries) == 3
    assert same(solve(journal)[0], solve(None)[0])
