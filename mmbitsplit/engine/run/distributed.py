"""Several processes: joining them, a Runner that works in each, errors said once, no hanging."""

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch import nn
from torch.distributed.rendezvous import rendezvous

# Seconds that a collective waits. Others wait while process 0 alone computes the metrics of a
# large data set, for which the 10 minutes of nccl are short; a lost process is noticed at once.
TIMEOUT = 1800
JOIN_TIMEOUT = 600  # processes of a cluster start minutes apart, not more
PATIENCE = 2.0  # seconds to wait for another process to say the same error, or to hear it said
MODEL_WRAPPERS = Registry('model_wrapper', parent=MMENGINE_MODEL_WRAPPERS, scope='mmbitsplit',
                          locations=['mmbitsplit.engine.run.distributed'])
LOST = "another process ended early; its own message, or the launcher's, says why"
VARIABLES = {
    'pytorch': {'RANK': 'RANK', 'WORLD_SIZE': 'WORLD_SIZE', 'LOCAL_RANK': 'LOCAL_RANK'},
    'slurm': {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'},
    'mpi': {'RANK': 'OMPI_COMM_WORLD_RANK', 'WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
            'LOCAL_RANK': 'OMPI_COMM_WORLD_LOCAL_RANK'},
}
STARTERS = {'pytorch': ('torchrun', 'tools/dist_quantize.sh CONFIG GPUS'),
            'slurm': ('srun', 'tools/slurm_quantize.sh PARTITION JOB_NAME CONFIG'),
            'mpi': ('mpirun', 'mpirun -np GPUS python tools/quantize.py CONFIG --launcher mpi')}


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """What a Runner wraps the model in: nothing.

    ``MMDistributedDataParallel`` exchanges gradients, of which there are none here. It refuses
    the device that mmengine names where there is no GPU, and models whose every parameter is
    frozen. As in a run of one process, synchronised batch norms become plain ones.

    Args:
        module: The model.
    """

    def __new__(cls, module: nn.Module) -> nn.Module:
        return revert_sync_batchnorm(module)


class Processes:
    """The processes of a run as one of them sees it; without arguments, there is one.

    They leave notes for each other in the store that also starts the process group. Unlike
    collectives, notes neither hang nor fail when another process is busy elsewhere or gone.

    Args:
        rank: Number of this process.
        world_size: How many there are.
        notes: The store.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, notes: dist.Store | None = None):
        self.rank, self.world_size, self.notes = rank, world_size, notes

    def say_once(self, message: str, say: Callable[[str], Any]) -> None:
        """Says an error in one process where all have the same, else in each that has it.

        Args:
            message: What went wrong.
            say: Prints a line. Process 0 is preferred; another adds who it is.
        """
        if self.world_size == 1:
            say(message)
            return
        key = hashlib.sha256(message.encode()).hexdigest()
        try:
            if self.rank and self._wait(lambda: self.notes.check([key])):
                self.notes.add('heard', 1)
                return
            said = self.notes.add(f'{key} counted', 1) > 1
        except RuntimeError:  # the store went with its process
            said = False
        if not said:
            say(message if self.rank == 0 else
                f'process {self.rank} of {self.world_size} ({platform.node()}): {message}')
        try:
            self.notes.set(key, 'said')
            # Under slurm and mpi the notes go with process 0, so it lets the others read them.
            if self.rank == 0:
                self._wait(lambda: self.notes.add('heard', 0) >= self.world_size - 1)
        except RuntimeError:
            pass

    def finish(self) -> None:
        """Waits for all processes, so that none ends well where one fails, and parts."""
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def _wait(self, ready: Callable[[], bool]) -> bool:
        # Polled: a wait of the store that is in vain prints warnings.
        end = time.monotonic() + PATIENCE
        while not (done := ready()) and time.monotonic() < end:
            time.sleep(0.02)
        return done


def join(launcher: str) -> Processes:
    """Meets the other processes; without a launcher there are none.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: The launcher did not start this process, or the others cannot be reached.
    """
    if launcher == 'none':
        return Processes()
    fill_environment(launcher)
    try:
        store, rank, world_size = next(rendezvous(
            'env://', timeout=timedelta(seconds=JOIN_TIMEOUT)))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'The other processes cannot be reached at {os.environ["MASTER_ADDR"]} '
                         f'port {os.environ["MASTER_PORT"]} ({_first_line(error)}); set '
                         'MASTER_ADDR to the first machine and another MASTER_PORT (PORT of '
                         'tools/dist_quantize.sh).') from error
    return Processes(rank, world_size, dist.PrefixStore('mmbitsplit', store))


def fill_environment(launcher: str) -> None:
    """Sets what torch wants to know of the processes, where the launcher tells it otherwise.

    Raises:
        ValueError: The launcher did not start this process.
    """
    variables = VARIABLES[launcher]
    missing = [name for name in variables.values() if name not in os.environ]
    if missing:
        starter, command = STARTERS[launcher]
        raise ValueError(f'--launcher {launcher} is for processes that {starter} started, but '
                         f'{missing[0]} is not set: use {command}, or leave --launcher out '
                         'for one process.')
    for name, source in variables.items():
        os.environ[name] = os.environ[source]
    if 'MASTER_PORT' not in os.environ:
        # A port of the job's own, below those that systems hand out: mmengine's 29500 for
        # everybody collides where two jobs share a machine.
        job, step = (int(os.environ.get(f'SLURM_{name}_ID', 0)) for name in ('JOB', 'STEP'))
        os.environ['MASTER_PORT'] = str(20000 + (31 * job + step) % 12000)
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_machine(launcher)


def is_first(cfg: Config) -> bool:
    """Whether this process is alone or the first of those that the config's launcher started.

    Raises:
        ValueError: The launcher did not start this process.
    """
    launcher = cfg.get('launcher') or 'none'
    if launcher == 'none':
        return True
    fill_environment(launcher)
    return os.environ['RANK'] == '0'


def _first_machine(launcher: str) -> str:
    machines = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('SLURM_NODELIST')
    if launcher == 'slurm' and machines:
        try:
            found = subprocess.run(['scontrol', 'show', 'hostnames', machines], text=True,
                                   capture_output=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            found = []
        if found:
            return found[0]
    elif os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == os.environ['WORLD_SIZE']:
        return '127.0.0.1'
    raise ValueError('It is not known which machine the first process runs on; set MASTER_ADDR '
                     'to its name.')


def prepare_config(cfg: Config) -> None:
    """Makes a Runner built from a config work in each of several processes.

    The process group gets a finite timeout and, without a GPU, is started here: mmengine's
    own start selects a CUDA device whatever the backend. Without a launcher nothing changes.

    Args:
        cfg: Changed in place.

    Raises:
        ValueError: The launcher did not start this process, or there are too few GPUs.
    """
    launcher = cfg.get('launcher') or 'none'
    if launcher == 'none':
        return
    fill_environment(launcher)
    settings = {'timeout': TIMEOUT, **((cfg.get('env_cfg') or {}).get('dist_cfg') or {})}
    wanted = settings.setdefault('backend', 'nccl')
    on_cpu = get_device() in ('cpu', 'mps')
    if on_cpu and (wanted == 'nccl' or not dist.is_backend_available(wanted)):
        settings['backend'] = 'gloo'
    cfg.env_cfg = {**(cfg.get('env_cfg') or {}), 'dist_cfg': settings}
    cfg.model_wrapper_cfg = dict(type='mmbitsplit.Unwrapped')
    cfg.randomness = {**(cfg.get('randomness') or {}), 'diff_rank_seed': False}
    if dist.is_initialized():
        return
    if on_cpu:
        dist.init_process_group(settings['backend'], timeout=timedelta(seconds=settings['timeout']))
        if dist.get_rank() == 0 and settings['backend'] != wanted:
            print_log(f'mmbitsplit: no GPU here, the processes exchange by {settings["backend"]} '
                      f'instead of {wanted}', logger='current')
    elif torch.cuda.is_available():
        place, devices = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if place >= devices:
            raise ValueError(f'Process {place + 1} of this machine finds {devices} GPU(s): start '
                             'as many processes as there are GPUs, or set '
                             'CUDA_VISIBLE_DEVICES=-1 to run on the CPU.')


def unite(runner: Runner) -> None:
    """Makes the weights of all processes those of the first, as a distributed wrapper would.

    Metrics get a folder inside the work directory to collect their parts in; mmengine's own is
    left behind in the current directory.

    Args:
        runner: With its weights loaded.
    """
    if not dist.is_initialized():
        return
    for value in runner.model.state_dict().values():
        if isinstance(value, torch.Tensor):
            broadcast(value)
    for metric in runner.test_loop.evaluator.metrics:
        if metric.collect_device == 'cpu' and metric.collect_dir is None:
            metric.collect_dir = os.path.join(runner.work_dir, '.collected')


def other_was_lost(error: BaseException) -> bool:
    """Whether an error only says that another process ended, which has its own reason."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in (
        'connection closed by peer', 'connection reset by peer', 'broken pipe',
        'remote process exited'))


def work_together(launcher: str, work: Callable[[Processes], None], say: Callable[[str], Any],
                  debug: bool = False) -> int:
    """Does the work of a tool in each of its processes; returns the exit status.

    Args:
        launcher: See ``join``.
        work: Raises ``ValueError`` or ``FileNotFoundError`` for what the user can mend.
        say: Prints such an error, which all processes together say once.
        debug: Raises instead.
    """
    processes = Processes()
    try:
        processes = join(launcher)
        work(processes)
        processes.finish()
    except (ValueError, FileNotFoundError) as error:
        if debug:
            raise
        processes.say_once(str(error), say)
        return 2
    except RuntimeError as error:
        if debug or not other_was_lost(error):
            raise
        processes.say_once(LOST, say)
        return 1
    return 0


def end_with(main: Callable[[], int]) -> NoReturn:
    """Runs a tool's ``main`` and ends the process with its exit status.

    A process that fails beside others ends at once. An interpreter that winds up may wait for
    what will never come: collectives under way on a device, workers of data loaders; and the
    others would wait for this one.
    """
    try:
        status = main()
    except SystemExit as end:  # argparse has said why
        status = end.code
    except BaseException:
        if not _beside_others():
            raise
        sys.excepthook(*sys.exc_info())
        status = 1
    if status and _beside_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
    sys.exit(status)


def _beside_others() -> bool:
    return int(os.environ.get('WORLD_SIZE', 1)) > 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().split('\n')[0]
