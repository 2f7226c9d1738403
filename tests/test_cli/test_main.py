"""The command ``mmbitsplit``: what it lists, what it starts, how it ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmbitsplit.cli import main as cli
from mmbitsplit.cli.command import make_parser
from mmbitsplit.cli.main import COMMANDS, Command, available, main
from mmbitsplit.version import __version__

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ('torch', 'numpy', 'mmengine', 'mmdet', 'cv2')


def test_only_commands_that_are_there_are_listed(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, 'brew', Command('brew_coffee', 'makes coffee'))
    assert {'quantize', 'test'} <= set(available()) and 'brew' not in available()
    assert main(['--help']) == 0
    listed = capsys.readouterr().out
    for name, command in available().items():
        assert f'  {name} ' in listed and command.summary in listed
    assert 'brew' not in listed and listed.splitlines()[-1].startswith('example: mmbitsplit ')
    assert main(['brew']) == 2


def test_every_module_of_a_command_is_in_the_table():
    named = {command.module for command in COMMANDS.values()}
    for folder in ('mmbitsplit/cli', 'bench/commands'):
        for path in (PROJECT / folder).glob('*.py'):
            if 'def add_arguments(' in path.read_text():
                assert path.stem in named, f'{path.name} is no command of mmbitsplit'


def test_help_is_what_comes_without_arguments_and_version_is_said(capsys):
    assert main([]) == 0 and main(['--version']) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'mmbitsplit {__version__}'


@pytest.mark.parametrize('written, meant', [('quantise', 'quantize'), ('tset', 'test')])
def test_a_misspelled_command_is_answered_with_the_nearest(written, meant, capsys):
    assert main([written, 'x.py']) == 2
    assert f"error: Unknown command '{written}': did you mean '{meant}'?" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = ('import sys; from mmbitsplit.cli.main import main; main(["--help"]); '
            f'print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)')
    done = subprocess.run([sys.executable, '-c', code], cwd=PROJECT, text=True,
                          capture_output=True, check=True)
    assert 'quantize' in done.stdout and done.stderr.strip() == ''


@pytest.mark.parametrize('name', available())
def test_every_command_has_one_example_that_its_parser_takes(name):
    module = COMMANDS[name].load()
    parser = make_parser(module, f'mmbitsplit {name}')
    text = parser.format_help()
    assert text.count('example: ') == 1 and '--debug' in text
    example = next(line for line in text.splitlines() if line.startswith('example: '))
    assert example == f'example: mmbitsplit {name} {module.EXAMPLE}'  # whole: it is pasted
    args = parser.parse_args(module.EXAMPLE.split())
    assert callable(module.run) and not args.debug


def test_help_lists_the_methods_and_the_true_default():
    text = {name: ' '.join(make_parser(COMMANDS[name].load(), name).format_help().split())
            for name in ('quantize', 'sensitivity')}
    assert 'KLDivergence' in text['quantize'] and 'num_bits=None' in text['quantize']
    assert '<config name>_sensitivity' in text['sensitivity']


@pytest.mark.parametrize('name', available())
def test_every_command_is_a_script_of_tools_too(name):
    script = next((PROJECT / 'tools').rglob(f'{COMMANDS[name].module}.py'))
    assert f'from {COMMANDS[name].path} import main' in script.read_text() \
        or f'from mmbitsplit.cli import {COMMANDS[name].module}' in script.read_text()
    assert len(script.read_text().splitlines()) <= 15


@pytest.mark.parametrize('name', available())
def test_the_example_of_a_script_names_the_script(name, capsys):
    with pytest.raises(SystemExit):
        COMMANDS[name].load().main(['--help'])
    script = re.search(r'example:\s+python\s+(\S+)', capsys.readouterr().out)[1]
    assert (PROJECT / script).is_file()


@pytest.mark.parametrize('arguments, code, said', [
    (['quantize', 'configs/demo/retinanet_digits_w4a9.py'], 2, "did you mean 'retin"),
    (['test', '--help'], 0, 'example: mmbitsplit test '),
    (['quantize'], 2, 'the following arguments are required: config'),
    (['quantise'], 2, "did you mean 'quantize'"),
])
def test_python_m_ends_with_the_status(arguments, code, said):
    done = subprocess.run([sys.executable, '-m', 'mmbitsplit', *arguments], cwd=PROJECT,
                          text=True, capture_output=True)
    assert done.returncode == code, done.stderr
    assert said in ' '.join((done.stdout + done.stderr).split())
    assert 'Traceback' not in done.stderr


def test_the_console_command_is_the_same():
    assert 'mmbitsplit = mmbitsplit.cli.main:start' in (PROJECT / 'setup.py').read_text()
    assert callable(cli.start)
