"""Exit statuses, errors in one line, Ctrl-C: with commands made up for it."""

import argparse
import types
from pathlib import Path

import pytest

from mmbitsplit.cli import quantize
from mmbitsplit.cli.command import add_debug, run_module


def command(run, **more):
    """A command as a module, whose ``run`` is given."""
    module = types.ModuleType('mmbitsplit.cli.made_up', 'Does something.')

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument('word')
        add_debug(parser)

    vars(module).update(EXAMPLE='hello', add_arguments=add_arguments, run=run, **more)
    return module


def raising(error):
    def run(args):
        raise error
    return run


def test_what_run_returns_is_the_status(capsys):
    said = []
    assert run_module(command(lambda args: said.append(args.word) or 0), ['hello']) == 0
    assert run_module(command(lambda args: 7), ['hello']) == 7
    assert said == ['hello'] and capsys.readouterr().err == ''


@pytest.mark.parametrize('error', [ValueError('bits=9: allowed are 2 to 8.'),
                                   FileNotFoundError(2, 'No such file', 'x.pth')])
def test_what_the_user_can_mend_is_one_line_and_2(error, capsys):
    assert run_module(command(raising(error)), ['hello']) == 2
    assert capsys.readouterr().err == f'error: {error}\n'


def test_a_failure_is_one_line_and_1_and_its_traceback_is_kept(capsys):
    assert run_module(command(raising(RuntimeError('shapes\ndiffer'))), ['hello']) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith('error: RuntimeError: shapes differ (the traceback is in ')
    kept = Path(line.rsplit(' ', 1)[1].rstrip(')'))
    try:
        assert 'Traceback' in kept.read_text() and 'in raising' not in line
        assert kept.read_text().rstrip().endswith('RuntimeError: shapes\ndiffer')
    finally:
        kept.unlink()


@pytest.mark.parametrize('error', [ValueError('mine'), RuntimeError('yours')])
def test_debug_raises(error):
    with pytest.raises(type(error), match=str(error)):
        run_module(command(raising(error)), ['hello', '--debug'])


@pytest.mark.parametrize('debug', [[], ['--debug']])
def test_ctrl_c_is_130_and_says_how_to_go_on(debug, capsys):
    module = command(raising(KeyboardInterrupt()),
                     after_interrupt=lambda line: f'again: {" ".join(line)} --resume')
    assert run_module(module, ['hello', *debug], 'mmbitsplit made-up') == 130
    words = ' '.join(['mmbitsplit made-up hello', *debug])
    assert capsys.readouterr().err == f'interrupted: again: {words} --resume\n'
    assert run_module(command(raising(KeyboardInterrupt())), ['hello']) == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_of_several_processes_the_first_says_that_it_was_interrupted(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    assert run_module(command(raising(KeyboardInterrupt())), ['hello']) == 130
    assert capsys.readouterr().err == ''


def test_the_command_that_resumes_can_be_pasted_into_a_shell():
    line = ['mmbitsplit', 'quantize', 'my configs/a.py', '--work-dir', 'x']
    assert quantize.after_interrupt(line).endswith(
        "go on with: mmbitsplit quantize 'my configs/a.py' --work-dir x --resume")
    assert quantize.after_interrupt([*line, '--resume']).count('--resume') == 1
    options = [*line, '--cfg-options', 'a=1']  # takes all words up to the next option
    assert quantize.after_interrupt(options).endswith('--cfg-options a=1 --resume')


def test_wrong_arguments_end_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        run_module(command(lambda args: 0), [])
    assert end.value.code == 2 and 'required: word' in capsys.readouterr().err
