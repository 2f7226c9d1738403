"""``plan.json`` is written by every run, but never over a plan that it was given."""

import json

import pytest
from mmengine.config import Config

from mmbitsplit.engine.files.plan_writer import write_plan
from mmbitsplit.structures import ActivationSpec, BitPlan, LayerPlan, WeightSpec, read_plan

PLAN = BitPlan((LayerPlan('conv', WeightSpec(3), ActivationSpec()),))


@pytest.mark.parametrize('given', [None, 'other/plan.json', {'layers': []}], ids=str)
def test_the_plan_of_the_run_replaces_that_of_an_earlier_one(given, tmp_path):
    (tmp_path / 'plan.json').write_text('an earlier one')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/plan.json').write_text('given')
    if isinstance(given, str):
        given = str(tmp_path / given)
    write_plan(tmp_path, PLAN, Config(dict(quantization=dict(plan=given))))
    assert read_plan(tmp_path / 'plan.json').rows['conv'].weight_bits == 3
    assert (tmp_path / 'other/plan.json').read_text() == 'given'


def test_what_the_user_edited_in_the_work_directory_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / 'plan.json'
    path.write_text(json.dumps({'layers': [{'name': 'conv', 'weight_bits': 2}]}))
    before = path.read_text()
    monkeypatch.chdir(tmp_path)
    for given in (str(path), 'plan.json'):
        write_plan(tmp_path, PLAN, Config(dict(quantization=dict(plan=given))))
        assert path.read_text() == before
