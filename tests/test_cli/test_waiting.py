"""Whatever starts a process says how its threads wait before torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmbitsplit.cli import wait_passively

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT) for pattern in ('tools/*.py', 'tools/analysis_tools/*.py',
                                           'benchmarks/*.py')
    for path in ROOT.glob(pattern) if "__name__ == '__main__'" in path.read_text())

# Says the policy when somebody first asks for torch, or at the end if nobody does.
WATCHED = '''
import os, runpy, sys
def tell():
    sys.stderr.write('policy ' + os.environ.get('OMP_WAIT_POLICY', 'none') + chr(10))
    sys.stderr.flush()
    os._exit(0)
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            tell()
sys.meta_path.insert(0, Watch())
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path[0] = os.path.dirname(script)
try:
    if os.path.exists(script):
        runpy.run_path(script, run_name='__main__')
    else:
        runpy.run_module(script, run_name='__main__')
finally:
    tell()
'''


def policy(*command, **more):
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_WAIT_POLICY'}
    answer = subprocess.run(
        [sys.executable, '-c', WATCHED, *command], capture_output=True, text=True, cwd=ROOT,
        env={**environment, 'PYTHONPATH': str(ROOT), **more}, check=False)
    return answer.stderr.splitlines()[-1]


@pytest.mark.parametrize('script', SCRIPTS, ids=str)
def test_scripts_wait_passively(script):
    assert policy(str(script), '--help') == 'policy PASSIVE'


def test_the_command_waits_passively_unless_the_user_chose_otherwise():
    assert policy('mmbitsplit', 'test', 'no_config.py', 'no.pth') == 'policy PASSIVE'
    chosen = policy('mmbitsplit', 'test', 'no_config.py', 'no.pth', OMP_WAIT_POLICY='ACTIVE')
    assert chosen == 'policy ACTIVE'


def test_a_choice_is_kept():
    environ = {'OMP_WAIT_POLICY': 'active'}
    wait_passively(environ)
    assert environ == {'OMP_WAIT_POLICY': 'active'}
