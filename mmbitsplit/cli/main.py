"""The command ``mmbitsplit``: finds the command that is asked for and runs it."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from mmbitsplit.cli.command import DONE, USER_ERROR, run_module, say_error, share_cores
from mmbitsplit.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]  # of a wheel it is site-packages
OF_THE_REPOSITORY = 'bench.commands'


@dataclass(frozen=True)
class Command:
    """A command, imported only when it is chosen.

    Args:
        module: Name in ``package``.
        summary: What ``mmbitsplit --help`` says of it.
        package: Where the module is.
    """

    module: str
    summary: str
    package: str = 'mmbitsplit.cli'

    @property
    def path(self) -> str:
        """Dotted name of the module."""
        return f'{self.package}.{self.module}'

    @property
    def is_there(self) -> bool:
        """Whether the module can be imported; a checkout alone has those of the repository."""
        if self.package == OF_THE_REPOSITORY:  # not find_spec: others have a package `bench` too
            return (REPOSITORY / f'{self.path.replace(".", "/")}.py').is_file()
        return find_spec(self.path) is not None

    def load(self) -> ModuleType:
        """Imports the module; an editable install does not know the packages beside ours."""
        if self.package == OF_THE_REPOSITORY:
            sys.path.insert(0, str(REPOSITORY))
        return importlib.import_module(self.path)


COMMANDS = {
    'quantize': Command('quantize', "quantize a config's model, with figures before and after"),
    'test': Command('test', 'evaluate a checkpoint, quantized or float'),
    'export': Command('export_onnx', 'write a quantized checkpoint as ONNX'),
    'test-onnx': Command('test_onnx', 'evaluate an exported model'),
    'inspect': Command('inspect_checkpoint', 'list what a quantized checkpoint holds'),
    'split': Command('split', 'a checkpoint of several widths as a base file and one file a width'),
    'convert': Command('convert', 'write a quantized checkpoint as safetensors, or back'),
    'card': Command('card', 'write the model card of a finished run, and push it to the Hub'),
    'report': Command('make_report', 'make report.html of a finished run again'),
    'compare': Command('compare_runs', 'put several runs into one table and one plot'),
    'sensitivity': Command('sensitivity', 'quantize each layer alone and see what it costs'),
    'plan': Command('plan', 'choose widths layer by layer for several budgets, and their front'),
    'pareto': Command('pareto', 'the plans worth having of a model with several widths'),
    'units': Command('units', 'divide a model into the parts that are reconstructed together'),
    'paper-tables': Command('paper_tables', "run the grid of one of the paper's tables",
                            OF_THE_REPOSITORY),
    'store-results': Command('store_results', 'keep the figures of finished runs in results/',
                             OF_THE_REPOSITORY),
    'update-tables': Command('update_tables', 'write the tables of pages from results/',
                             OF_THE_REPOSITORY),
}
EXAMPLE = ('example: mmbitsplit quantize mmdet::yolox/yolox_tiny_8xb8-300e_coco.py '
           '--weight-bits 4 --work-dir work_dirs/yolox_tiny')


def available() -> dict[str, Command]:
    """Returns the commands whose modules are there."""
    return {name: command for name, command in COMMANDS.items() if command.is_there}


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
    commands = available()
    if first in commands:
        return run_module(commands[first].load(), rest, f'mmbitsplit {first}')
    if first in COMMANDS and COMMANDS[first].package == OF_THE_REPOSITORY:
        say_error(f"The command '{first}' is part of mmbitsplit's repository (bench/, tools/"
                  f'{COMMANDS[first].module}.py), not of an installed wheel: run it in a checkout '
                  'of the repository.')
        return USER_ERROR
    from mmbitsplit.spelling import nearest
    say_error(f"Unknown command '{first}': {nearest(first, commands)}.")
    return USER_ERROR


def start() -> NoReturn:
    """Runs ``main`` and ends the process, as the console command does."""
    # A process that fails beside others ends in its own way, which needs OpenMMLab.
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        from mmbitsplit.engine.run.distributed import end_with
        end_with(main)
    share_cores(sys.argv[1:])
    sys.exit(main())
