"""What a journal keeps comes back, in order; facts; the beginning and the end."""

import dataclasses
import functools
from pathlib import Path

import numpy
import pytest
import torch
from journal_entries import IDENTITY, assert_entries, changed, entry, names, plain, resume, write
from torch import nn

from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.journal import entries as entries_module
from mmbitsplit.calibration.journal import journal as journal_module
from mmbitsplit.calibration.journal.plain_solutions import (
    solution_to_plain,
    to_product_solution,
)
from mmbitsplit.functional import narrower_codes
from mmbitsplit.structures import Log2Params, ProductSolution, QParams

# What is written comes back


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('qparams', ['per_tensor', 'per_channel', 'none'])
def test_an_entry_comes_back_in_every_field(qparams, bias, tmp_path):
    written = entry(1, qparams, bias)
    write(tmp_path, [written])
    journal = resume(tmp_path)
    assert_entries(journal, [written])
    assert journal.problems == [] and not journal.finished
    report = journal.entries[0].report
    assert all(type(getattr(report, name)) is type(getattr(written.report, name))
               for name in vars(report))


def test_entries_from_before_outputs_were_quantized_are_read(tmp_path, monkeypatch):
    to_plain, to_dict = entries_module.solution_to_plain, entries_module.asdict

    def without(key, value):
        return {name: item for name, item in value.items() if name != key}
    newer = ('output_qparams', 'narrower', 'narrower_inputs', 'narrower_outputs', 'nesting')
    monkeypatch.setattr(entries_module, 'solution_to_plain', lambda value: functools.reduce(
        lambda plain, key: without(key, plain), newer, to_plain(value)))
    monkeypatch.setattr(entries_module, 'asdict', lambda row: without('output_bits', to_dict(row)))
    write(tmp_path, [entry(1), entry(3)])
    assert b'output_' not in (tmp_path / '0000.layer').read_bytes()
    journal = resume(tmp_path)
    assert_entries(journal, [entry(1), entry(3)])
    assert journal.entries[0].solution.output_qparams is None


@pytest.mark.parametrize('nesting', [None, 'planes', 'floor'])
def test_an_entry_of_several_widths_comes_back(nesting, tmp_path):
    """Codes that are made of the widest's are made again, and are not written."""
    written, generator = entry(1), torch.Generator().manual_seed(5)
    codes = torch.randint(-127, 128, (512, 2, 3, 3), generator=generator).to(torch.int8)
    widest = dataclasses.replace(written.solution, codes=codes, num_bits=8, nesting=nesting)
    own = torch.randint(-7, 8, codes.shape, generator=generator).to(torch.int8)
    solution = dataclasses.replace(
        widest, narrower=tuple(dataclasses.replace(
            widest, num_bits=num_bits, weight_scale=torch.rand(64, generator=generator),
            codes=own if nesting is None else narrower_codes(codes, 8, num_bits, nesting))
            for num_bits in (6, 4, 3)),
        narrower_inputs=tuple(dataclasses.replace(widest.qparams, quant_max=high)
                              for high in (63, 15)),
        narrower_outputs=(QParams(torch.rand(1), torch.zeros(1), 0, 15, unit=False),))
    written = dataclasses.replace(written, solution=solution)
    write(tmp_path, [written])
    assert_entries(resume(tmp_path), [written])
    size = (tmp_path / '0000.layer').stat().st_size
    assert (size > 4 * codes.numel()) == (nesting is None)


def test_a_product_of_several_widths_comes_back():
    wide, narrow = (QParams(torch.rand(2), torch.ones(2), 0, high) for high in (255, 15))
    solution = ProductSolution(wide, Log2Params(4), (narrow,), (Log2Params(3), Log2Params(2)))
    found = to_product_solution(solution_to_plain(solution))
    assert plain(found) == plain(solution)
    old = {side: value for side, value in solution_to_plain(solution).items() if len(side) == 1}
    assert to_product_solution(old).narrower_a == ()


def test_order_is_kept_and_a_resumed_journal_goes_on(tmp_path):
    entries = [entry(index) for index in range(4)]
    write(tmp_path, entries[:2])
    journal = resume(tmp_path)
    assert_entries(journal, entries[:2])
    journal.entries.clear()  # the caller may use them up
    for item in entries[2:]:
        journal.append(item)
    assert_entries(resume(tmp_path), entries)
    assert names(tmp_path) == ['0000.layer', '0001.layer', '0002.layer', '0003.layer',
                               'header.json']


def test_append_does_not_keep_the_layer_in_memory(tmp_path):
    assert write(tmp_path, [entry()]).entries == []


def test_more_than_four_digits(tmp_path):
    journal = write(tmp_path, [])
    assert journal._path(10000).name == '10000.layer'
    (tmp_path / '10000.layer').write_bytes(b'')
    (tmp_path / '9999.layer').write_bytes(b'')
    assert [path.name for path in journal_module._layer_files(tmp_path)] == \
        ['10000.layer', '9999.layer']


def test_a_view_does_not_save_its_whole_storage(tmp_path):
    large = torch.zeros(500, 3)
    solution = dataclasses.replace(entry().solution, weight_scale=large[3], bias=large.T[:, 1])
    write(tmp_path, [dataclasses.replace(entry(), solution=solution)])
    assert (tmp_path / '0000.layer').stat().st_size < 5000
    assert torch.equal(resume(tmp_path).entries[0].solution.bias, torch.zeros(3))


def test_parameters_come_back_as_plain_tensors(tmp_path):
    solution = dataclasses.replace(entry().solution, bias=nn.Parameter(torch.ones(3)))
    write(tmp_path, [dataclasses.replace(entry(), solution=solution)])
    bias = resume(tmp_path).entries[0].solution.bias
    assert type(bias) is torch.Tensor and not bias.requires_grad


def test_what_could_not_be_read_back_is_refused_when_written(tmp_path):
    journal = write(tmp_path, [entry(0)])
    odd = dataclasses.replace(entry(1).report, error=numpy.float32(1.5))
    with pytest.raises(ValueError, match="'layer1' cannot be kept in .*0001.layer.*plain numbers"):
        journal.append(dataclasses.replace(entry(1), report=odd))
    journal.append(entry(1))
    assert_entries(resume(tmp_path), [entry(0), entry(1)])


# Begin, resume, wipe


@pytest.mark.parametrize('resumed', [True, False])
def test_a_new_journal_where_there_is_none(resumed, tmp_path):
    journal = Journal.open(str(tmp_path / 'a' / 'b'), IDENTITY, resume=resumed)
    assert (journal.entries, journal.problems, journal.facts, journal.finished) == \
        ([], [], {}, False)
    journal.append(entry())
    assert_entries(resume(tmp_path / 'a' / 'b'), [entry()])


def test_without_resume_an_existing_journal_is_removed(tmp_path):
    write(tmp_path, [entry(0), entry(1)]).remember(old=1)
    (tmp_path / 'results.json').write_text('not ours')
    journal = Journal.open(tmp_path, changed(scope='neck'), resume=False)
    assert journal.entries == [] and journal.facts == {} and journal.problems == []
    assert names(tmp_path) == ['header.json', 'results.json']


def test_temporary_leftovers_are_ignored_and_removed(tmp_path):
    write(tmp_path, [entry(0)])
    whole = (tmp_path / '0000.layer').read_bytes()
    (tmp_path / '.0001.layer.4711.tmp').write_bytes(whole[:50])
    (tmp_path / '.header.json.4711.tmp').write_bytes(b'{')
    (tmp_path / '.mine.tmp').write_bytes(b'not ours')
    journal = resume(tmp_path)
    assert_entries(journal, [entry(0)])
    assert journal.problems == []
    assert names(tmp_path) == ['.mine.tmp', '0000.layer', 'header.json']


def test_layers_without_a_header_are_worth_nothing(tmp_path):
    write(tmp_path, [entry(0), entry(1)])
    (tmp_path / 'header.json').unlink()
    journal = resume(tmp_path)
    assert journal.entries == [] and names(tmp_path) == ['header.json']
    assert len(journal.problems) == 1
    assert 'header.json is missing' in journal.problems[0] and '2 solved' in journal.problems[0]


# Facts and the end


def test_facts_are_kept_and_merged(tmp_path):
    journal = write(tmp_path, [entry()])
    journal.remember(metrics={'mAP': 0.1 + 0.2, 'nan': -1}, seconds=2.5)
    journal.remember(seconds=3.5, ids=(1, 2))
    wanted = {'metrics': {'mAP': 0.1 + 0.2, 'nan': -1}, 'seconds': 3.5, 'ids': [1, 2]}
    assert journal.facts == wanted
    again = resume(tmp_path)
    assert again.facts == wanted
    assert_entries(again, [entry()])


def test_a_fact_that_json_cannot_say_changes_nothing(tmp_path):
    journal = write(tmp_path, [])
    journal.remember(good=1)
    with pytest.raises(ValueError, match="cannot keep the fact 'bad'"):
        journal.remember(good=2, bad=object())
    assert journal.facts == resume(tmp_path).facts == {'good': 1}


def test_finish_leaves_a_small_header_that_says_so(tmp_path):
    journal = write(tmp_path, [entry(0), entry(1)])
    journal.remember(metric=1)
    journal.finish()
    assert journal.finished and names(tmp_path) == ['header.json']
    again = resume(tmp_path)
    assert again.finished and again.entries == [] and again.problems == []
    assert again.facts == {'metric': 1}
    with pytest.raises(AssertionError):
        again.append(entry())
    with pytest.raises(ValueError, match='scope'):
        resume(tmp_path, changed(quantization__scope='neck'))
    assert not Journal.open(tmp_path, IDENTITY, resume=False).finished
    assert not resume(tmp_path).finished


def test_finish_interrupted_before_the_layers_are_gone(tmp_path, monkeypatch):
    journal = write(tmp_path, [entry(0), entry(1)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', lambda *args, **kwargs: (_ for _ in ()).throw(
            PermissionError('denied')) if args[0].suffix == '.layer' else None)
        with pytest.raises(ValueError, match='denied'):
            journal.finish()
    assert '0001.layer' in names(tmp_path)
    again = resume(tmp_path)
    assert again.finished and again.entries == [] and again.problems == []
    assert names(tmp_path) == ['header.json']
