"""The command ``mmbitsplit``: finds the command that is asked for and runs it."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

from mmbitsplit.cli.command import DONE, USER_ERROR, run_module, say_error
from mmbitsplit.version import __version__


@dataclass(frozen=True)
class Command:
    """A command, imported only when it is chosen.

    Args:
        module: Name in ``mmbitsplit.cli``.
        summary: What ``mmbitsplit --help`` says of it.
    """

    module: str
    summary: str

    @property
    def path(self) -> str:
        """Dotted name of the module."""
        return f'mmbitsplit.cli.{self.module}'


COMMANDS = {
    'quantize': Command('quantize', "quantize a config's model, with figures before and after"),
    'test': Command('test', 'evaluate a checkpoint, quantized or float'),
    'export': Command('export_onnx', 'write a quantized checkpoint as ONNX'),
    'test-onnx': Command('test_onnx', 'evaluate an exported model'),
    'inspect': Command('inspect_checkpoint', 'list what a quantized checkpoint holds'),
    'report': Command('make_report', 'make report.html of a finished run again'),
    'compare': Command('compare_runs', 'put several runs into one table and one plot'),
    'paper-tables': Command('paper_tables', "run the grid of one of the paper's tables"),
    'store-results': Command('store_results', 'keep the figures of finished runs in results/'),
    'update-tables': Command('update_tables', 'write the tables of pages from results/'),
    'sensitivity': Command('sensitivity', 'quantize each layer alone and see what it costs'),
}
EXAMPLE = ('example: mmbitsplit quantize mmdet::yolox/yolox_tiny_8xb8-300e_coco.py '
           '--weight-bits 4 --work-dir work_dirs/yolox_tiny')


def available() -> dict[str, Command]:
    """Returns the commands whose modules are there."""
    return {name: command for name, command in COMMANDS.items() if find_spec(command.path)}


def help_text() -> str:
    """Returns what ``mmbitsplit --help`` prints."""
    commands = available()
    width = max(map(len, commands))
    lines = [f'  {name:<{width}}  {command.summary}' for name, command in commands.items()]
    return '\n'.join([
        'usage: mmbitsplit COMMAND [arguments]', '',
        'Post-training quantization for OpenMMLab models.', '', 'commands:', *lines, '',
        'mmbitsplit COMMAND --help lists the arguments of a command.', EXAMPLE])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        argv: Arguments without the program's name, those of the process when not given.
    """
    first, *rest = list(sys.argv[1:] if argv is None else argv) or ['--help']
    if first in ('-h', '--help', 'help'):
        print(help_text())
        return DONE
    if first in ('-V', '--version'):
        print(f'mmbitsplit {__version__}')
        return DONE
    if first not in available():
        from mmbitsplit.structures import nearest
        say_error(f"Unknown command '{first}': {nearest(first, available())}.")
        return USER_ERROR
    return run_module(importlib.import_module(COMMANDS[first].path), rest, f'mmbitsplit {first}')


def start() -> NoReturn:
    """Runs ``main`` and ends the process, as the console command does."""
    # A process that fails beside others ends in its own way, which needs OpenMMLab.
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        from mmbitsplit.engine.distributed import end_with
        end_with(main)
    sys.exit(main())
