"""What all commands share: the parser's frame, errors in one line, exit status, Ctrl-C.

A command is a module with a docstring (its help), ``EXAMPLE`` (the arguments of one example),
``add_arguments(parser)`` and ``run(args) -> int``; ``after_interrupt(command)``, where there is
one, says what to do after Ctrl-C.
"""

import argparse
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import ModuleType

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
EXTRAS = {  # of setup.py, by the package that a command may miss
    'mmengine': 'mm', 'mmcv': 'mm', 'mmdet': 'mm', 'mmpretrain': 'mm', 'torchvision': 'mm',
    'cv2': 'demo', 'pycocotools': 'demo', 'sklearn': 'demo', 'plotly': 'report', 'PIL': 'report',
    'jinja2': 'report', 'matplotlib': 'docs', 'scipy': 'budget', 'onnx': 'onnx',
    'onnxscript': 'onnx', 'onnx_ir': 'onnx', 'onnxruntime': 'onnx', 'openvino': 'onnx',
    'safetensors': 'hub', 'huggingface_hub': 'hub'}
USER_ERRORS = (ValueError, FileNotFoundError)  # the message says what to mend


def run_module(module: ModuleType, argv: Sequence[str] | None = None,
               program: str | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        module: The command.
        argv: Its arguments, those of the process when not given.
        program: How the user calls it; ``python tools/<name>.py`` when not given.

    Returns:
        0: done. 1: a failure, its traceback is in a file that the message names. 2: the user can
        mend it. 130: Ctrl-C.
    """
    if argv is None:  # a process of its own, not a call from Python
        share_cores(sys.argv[1:])
    argv = list(sys.argv[1:] if argv is None else argv)
    program = program or f'python tools/{module.__name__.rsplit(".", 1)[-1]}.py'
    try:
        args = make_parser(module, program).parse_args(argv)
        return module.run(args)
    except KeyboardInterrupt:
        advice = getattr(module, 'after_interrupt', lambda command: '')
        if is_first_process():
            say('interrupted', advice([*shlex.split(program), *argv]))
        return INTERRUPTED
    except USER_ERRORS as error:
        if '--debug' in argv:
            raise
        say_error(str(error))
        return USER_ERROR
    except ImportError as error:
        if '--debug' in argv:
            raise
        advice = _how_to_install(error)
        say_error(advice or _kept(error))
        return USER_ERROR if advice else FAILED
    except Exception as error:
        if '--debug' in argv:
            raise
        say_error(_kept(error))
        return FAILED


def make_parser(module: ModuleType, program: str) -> argparse.ArgumentParser:
    """Returns the parser of a command, with its example below the arguments."""
    # Not filled: an example that is broken over lines cannot be pasted into a shell.
    parser = argparse.ArgumentParser(prog=program, description=module.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=f'example: {program} {module.EXAMPLE}')
    module.add_arguments(parser)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds ``--debug``, which every command has."""
    parser.add_argument('--debug', action='store_true',
                        help='show the traceback of an error instead of one line')


def add_integer(parser: argparse.ArgumentParser, first: str = '') -> None:
    """Adds ``--integer``, of commands that evaluate.

    Args:
        parser: Of the command.
        first: What counts before the default where the argument is not given.
    """
    parser.add_argument('--integer', choices=('auto', 'on', 'off'),
                        help='evaluate the quantized model with layers that multiply bytes: auto '
                             'where torch and the processor can, on (on GPUs, too) or an error; '
                             'figures may differ in the last digit from those of off, which '
                             f"upstream's tools give, too; default {first}auto")


def positive(text: str) -> int:
    """Reads an argument that is an integer from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not supported; allowed are integers from 1")
    return value


def share_cores(argv: Sequence[str]) -> None:
    """Leaves cores that are busy to others, and says so; not for a look at ``--help``."""
    if argv and not {'-h', '--help', '-V', '--version'} & set(argv):
        from mmbitsplit.cli.free_cores import take_free_cores
        note = take_free_cores()
        if note:
            say('note', note)


def say_error(message: str) -> None:
    """Says what went wrong, one line on standard error."""
    say('error', message)


def say(what: str, message: str) -> None:
    """Writes one line to standard error."""
    print(f'{what}: {message}' if message else what, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this process is alone or the first of those that a launcher started."""
    return os.environ.get('RANK', '0') == '0'


def _how_to_install(error: ImportError) -> str:
    """Says how to get a package that is not installed; empty for another error of importing."""
    if error.name is None:  # a sentence of whoever raised it
        return _one_line(error).removeprefix(f'{type(error).__name__}: ') if str(error) else ''
    package = error.name.split('.')[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return ''
    return (f"The package '{package}' is not installed, and this command needs it: pip install "
            f"'mmbitsplit[{EXTRAS[package]}]' (docs/get_started.md).")


def _kept(error: BaseException) -> str:
    return f'{_one_line(error)} (the traceback is in {_keep_traceback()})'


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def _keep_traceback() -> str:
    """Writes the current traceback to a file: after hours of work nobody can ask for it again."""
    with tempfile.NamedTemporaryFile('w', encoding='utf-8', prefix='mmbitsplit-', suffix='.log',
                                     delete=False) as file:
        traceback.print_exc(file=file)
    return file.name
