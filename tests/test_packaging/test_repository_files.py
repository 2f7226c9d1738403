"""Files that GitHub and pre-commit read: valid, and in step with the package."""

import re
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
FORMS = sorted((PROJECT / '.github/ISSUE_TEMPLATE').glob('*.yml'))
WORKFLOWS = sorted((PROJECT / '.github/workflows').glob('*.yml'))


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', [path for path in FORMS if path.stem != 'config'],
                         ids=lambda path: path.stem)
def test_issue_forms_are_what_github_takes(path):
    form = read(path)
    assert form['name'] and form['description'] and form['body']
    names = [part['id'] for part in form['body'] if part['type'] != 'markdown']
    assert len(names) == len(set(names)) >= 1
    for part in form['body']:
        assert part['type'] in ('markdown', 'textarea', 'input', 'dropdown', 'checkboxes')
        assert part['attributes'].get('label') or part['type'] == 'markdown'


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_lint_and_tests_on_every_python_that_is_supported(path):
    job, = read(path)['jobs'].values()
    steps = job['steps']
    assert job['strategy']['matrix']['python'] == ['3.10', '3.11', '3.12']
    assert any('make lint test' in step.get('run', '') for step in steps)
    for step in steps:
        assert 'run' in step or re.fullmatch(r'[\w./-]+@v\d+', step['uses'])


def test_the_kept_environment_belongs_to_one_release_of_python():
    """A virtual environment links to its interpreter, which runners replace."""
    steps = read(PROJECT / '.github/workflows/ci.yml')['jobs']['lint-and-test']['steps']
    python = next(step for step in steps if 'setup-python' in step.get('uses', ''))
    kept = next(step for step in steps if 'actions/cache' in step.get('uses', ''))
    assert f"steps.{python['id']}.outputs.python-version" in kept['with']['key']
    assert 'setup.py' in kept['with']['key'] and '.venv' in kept['with']['path']


def test_hooks_of_pre_commit_are_pinned_or_of_this_environment():
    for source in read(PROJECT / '.pre-commit-config.yaml')['repos']:
        if source['repo'] == 'local':
            assert all(hook['entry'].startswith('.venv/bin/python -m ')
                       for hook in source['hooks'])
        else:
            assert re.fullmatch(r'v\d+\.\d+\.\d+', source['rev'])
