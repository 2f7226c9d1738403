"""tools/dist_quantize.sh and tools/slurm_quantize.sh: two processes on the CPU, by gloo."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmbitsplit.engine.run import distributed
from mmbitsplit.engine.run.distributed import (
    Processes,
    Unwrapped,
    fill_environment,
    join,
    other_was_lost,
    prepare_config,
)

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/classifier_digits_w4a8.py'
FEW = ('--cfg-options', 'quantization.calibration.num_images=64',
       'quantization.calibration.rows_per_layer=512', 'test_dataloader.dataset.indices=256')
LEARNED = ('--method', 'AdaRound', *FEW, 'quantization.method.iterations=30')
LAUNCHED = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_PROCID',
            'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_JOB_ID', 'SLURM_STEP_ID', 'SLURM_NODELIST',
            'SLURM_STEP_NODELIST')


def environment(**more):
    """The current one without a launcher's variables, the interpreter and one thread added."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return {**kept, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '-1', **more}


def script(name, *args, **more):
    return subprocess.run([f'tools/{name}', *map(str, args)], cwd=PROJECT, text=True,
                          capture_output=True, env=environment(**more), timeout=300)


@pytest.fixture
def no_launcher(monkeypatch):
    """An environment without a launcher's variables, restored afterwards."""
    for name in LAUNCHED:
        monkeypatch.setenv(name, '')  # noted, so that what the code sets is undone
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run_tool, tmp_path):
    """Layers are solved first, then learned; ``test_passes/test_team.py`` has all other ways."""
    options = LEARNED
    one, two = tmp_path / 'one', tmp_path / 'two'
    done = script('dist_quantize.sh', CONFIG, 2, '--work-dir', two, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('| accuracy/top1 |') == 1
    assert done.stdout.count(f'Files are in {two}') == 1
    assert 'exchange by gloo instead of nccl' in done.stdout
    assert 'destroy_process_group' not in done.stderr  # torch's warning when it was not called
    names = {'results.json', 'layers.json', 'quantized.pth', 'quantized_config.py'}
    assert names <= {path.name for path in two.iterdir()} and not (two / '.collected').exists()
    assert not (PROJECT / '.dist_test').exists()
    config = Config.fromfile(two / 'quantized_config.py')
    assert not {'launcher', 'model_wrapper_cfg'} & set(config)
    assert run_tool('tools/quantize.py', CONFIG, '--work-dir', one, *options).returncode == 0
    states = [torch.load(path / 'quantized.pth', weights_only=True)['state_dict']
              for path in (one, two)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    one, two = (json.loads((path / 'results.json').read_text()) for path in (one, two))
    assert two['float'] == one['float'] and two['quantized'] == one['quantized']
    assert two['calibration'] == {**one['calibration'], 'processes': 2}


@pytest.mark.slow
def test_an_error_of_all_is_said_once(tmp_path):
    done = script('dist_quantize.sh', CONFIG, 2, 'no/such.pth', '--work-dir', tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and errors[0].startswith('error: no/such.pth does not exist')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_process_stops_the_others(tmp_path):
    log = tmp_path / 'log'
    with log.open('w') as stream:
        run = subprocess.Popen(
            ['tools/dist_quantize.sh', CONFIG, '2', '--work-dir', tmp_path / 'run', *FEW],
            cwd=PROJECT, stdout=stream, stderr=subprocess.STDOUT, env=environment())
    ranks = []
    try:
        wait_for(lambda: 'calibrating on' in log.read_text(), run)
        ranks = ranks_of(run.pid)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert run.wait(60) != 0
        wait_for(lambda: not any(map(alive, ranks)), None, 5)
    finally:
        for process in [*ranks, run.pid]:
            if alive(process):
                os.kill(process, signal.SIGKILL)
        run.wait()
    assert 'SIGKILL' in log.read_text()
    assert not (tmp_path / 'run/results.json').exists()


def wait_for(ready, run, seconds=120):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, 'it takes too long'
        assert run is None or run.poll() is None, 'it ended too early'
        time.sleep(0.1)


def ranks_of(launcher):
    """Process ids by rank of what a torchrun has started."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            parent = int((folder / 'stat').read_text().rsplit(')', 1)[1].split()[1])
            variables = (folder / 'environ').read_bytes().split(b'\0') \
                if parent == launcher else []
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        found.update({int(variable[5:]): int(folder.name) for variable in variables
                      if variable.startswith(b'RANK=')})
    return [found[rank] for rank in sorted(found)]


def alive(process):
    try:
        return Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def test_slurm_gets_the_usual_options(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "threads $OMP_NUM_THREADS"\n')
    srun.chmod(0o755)
    more = dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', GPUS='4', OMP_NUM_THREADS='',
                CPUS_PER_TASK='3', SRUN_ARGS='--time=60 --exclusive')
    lines = script('slurm_quantize.sh', 'part', 'job', CONFIG, '--seed', 1, **more
                   ).stdout.splitlines()
    assert lines[:9] == ['--partition=part', '--job-name=job', '--gres=gpu:4', '--ntasks=4',
                         '--ntasks-per-node=4', '--cpus-per-task=3', '--kill-on-bad-exit=1',
                         '--time=60', '--exclusive']
    assert lines[9:11] == [sys.executable, '-u'] and lines[11].endswith('tools/quantize.py')
    assert lines[12:] == [CONFIG, '--seed', '1', '--launcher', 'slurm', 'threads 3']
    lines = script('slurm_quantize.sh', 'part', 'job', CONFIG, **more, GRES='')
    assert '--gres' not in lines.stdout


@pytest.mark.parametrize('name, args', [
    ('dist_quantize.sh', [CONFIG]), ('dist_quantize.sh', [CONFIG, 'x']),
    ('dist_quantize.sh', [CONFIG, 0]), ('slurm_quantize.sh', ['part', 'job'])])
def test_the_scripts_say_how_they_are_used(name, args):
    done = script(name, *args)
    assert done.returncode == 2 and done.stderr.startswith(f'usage: tools/{name}')


def said_by(messages, monkeypatch):
    """What the processes of a run say, each having one message or none."""
    monkeypatch.setattr(distributed, 'PATIENCE', 0.3)
    store, said = torch.distributed.HashStore(), []
    threads = [threading.Thread(target=Processes(rank, len(messages), store).say_once,
                                args=(message, said.append))
               for rank, message in enumerate(messages) if message]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_an_error_is_said_by_the_first_or_by_who_has_it(monkeypatch):
    assert said_by(['lost'], monkeypatch) == ['lost']
    assert said_by(['lost'] * 3, monkeypatch) == ['lost']
    here = os.uname().nodename
    assert said_by([None, 'lost'], monkeypatch) == [f'process 1 of 2 ({here}): lost']
    assert len(said_by([None, 'lost', 'lost'], monkeypatch)) == 1
    assert sorted(said_by(['one', 'other'], monkeypatch)) \
        == ['one', f'process 1 of 2 ({here}): other']


def test_without_a_launcher_nothing_changes(no_launcher):
    processes = join('none')
    assert (processes.rank, processes.world_size) == (0, 1)
    processes.finish()
    cfg = Config(dict(launcher='none'))
    prepare_config(cfg)
    assert cfg.to_dict() == dict(launcher='none')


@pytest.mark.parametrize('launcher, variable, command', [
    ('pytorch', 'RANK', 'tools/dist_quantize.sh'), ('mpi', 'OMPI_COMM_WORLD_RANK', 'mpirun'),
    ('slurm', 'SLURM_PROCID', 'tools/slurm_quantize.sh')])
def test_a_process_that_no_launcher_started(launcher, variable, command, no_launcher):
    with pytest.raises(ValueError, match=f'{variable} is not set: use {command}'):
        join(launcher)


def test_slurm_s_variables_become_torch_s(no_launcher, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$3" = "node[7-8]" ] && printf "node7\\nnode8\\n"\n')
    scontrol.chmod(0o755)
    no_launcher.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    for name, value in dict(PROCID=3, NTASKS=4, LOCALID=1, JOB_ID=12, STEP_ID=2,
                            NODELIST='node[7-8]').items():
        no_launcher.setenv(f'SLURM_{name}', str(value))
    fill_environment('slurm')
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    assert [os.environ[name] for name in names] == ['3', '4', '1', 'node7', '20374']
    for name in ('MASTER_ADDR', 'SLURM_NODELIST'):
        no_launcher.delenv(name)
    with pytest.raises(ValueError, match='set MASTER_ADDR'):
        fill_environment('slurm')


def test_synchronised_batch_norms_become_plain_ones():
    model = Unwrapped(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.SyncBatchNorm(2)))
    assert type(model) is torch.nn.Sequential
    assert not isinstance(model[1], torch.nn.SyncBatchNorm)


def test_only_a_lost_connection_is_another_s_fault():
    assert other_was_lost(RuntimeError('[pair.cc:553] Connection closed by peer [::1]:1'))
    assert not other_was_lost(RuntimeError('shapes cannot be multiplied'))
    assert not other_was_lost(ValueError('Connection closed by peer'))
