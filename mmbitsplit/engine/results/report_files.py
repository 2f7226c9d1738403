"""Writes the report of a run: what it is made of as JSON, and the page."""

import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmbitsplit.engine.files.choice_writer import BUDGET
from mmbitsplit.engine.results.artifacts import LAYERS, RESULTS
from mmbitsplit.engine.results.evaluation_record import EvaluationRecord
from mmbitsplit.engine.run.quantize import QuantizedRun
from mmbitsplit.export.writing import write_json, write_text
from mmbitsplit.functional import code_histogram
from mmbitsplit.report import classification, detections
from mmbitsplit.report.classification import Answer, accuracy_by_class
from mmbitsplit.report.detections import Detections
from mmbitsplit.report.page import to_json

REPORT, REPORT_DATA, REPORT_ERROR = 'report.html', 'report_data.json', 'report_error.txt'
FORMAT = 1
NEEDED = {RESULTS: ('config', 'method', 'weight_bits', 'activation_bits', 'float', 'quantized',
                    'drop', 'size_bytes', 'seconds', 'peak_rss_bytes', 'calibration', 'versions'),
          LAYERS: ('layers',), REPORT_DATA: ('format',),
          BUDGET: ('table', 'costs', 'plans', 'chosen', 'front', 'limits', 'loss')}
MOST_PICTURES = {'detection': 12, 'classification': 24}
MOST_PICTURE_BYTES = 1_600_000  # of all, so that the page stays under its limit


def leave_report(work_dir: Path, run: QuantizedRun, float_record: EvaluationRecord | None,
                 quantized_record: EvaluationRecord, classes: Sequence[str]) -> bool:
    """Writes ``report_data.json`` and ``report.html``; never raises, the run is finished.

    What goes wrong is logged and kept in ``report_error.txt``.

    Args:
        work_dir: Where ``results.json`` and ``layers.json`` are.
        run: What came of quantizing.
        float_record, quantized_record: Of the two evaluations; ``None`` where another run made
            that of the float model and left nothing but its figures.
        classes: Names of the classes.

    Returns:
        Whether the page was written.
    """
    try:
        write_text(work_dir / REPORT_DATA, to_json(
            report_data(run, float_record, quantized_record, classes)) + '\n')
        write_page(work_dir)
    except Exception as error:  # noqa: BLE001  whatever it is, the quantized model is there
        print_log(f'mmbitsplit: the report could not be written ({error}); all other files are '
                  f'in {work_dir}. To make it again: python tools/make_report.py {work_dir}',
                  logger='current', level=40)
        try:
            write_text(work_dir / REPORT_ERROR, traceback.format_exc())
        except ValueError as second:  # such as a full disk, most likely the first reason too
            print_log(f'mmbitsplit: {second}', logger='current', level=40)
        return False
    return True


def write_page(work_dir: Path) -> Path:
    """Makes ``report.html`` from the files of a work directory.

    Raises:
        ValueError: There is no finished run in it, or a file cannot be read or written.
        ImportError: plotly is not installed.
    """
    from mmbitsplit.report.run_page import run_page  # imports Pillow

    results, layers = (read_file(work_dir, name) for name in (RESULTS, LAYERS))
    data = read_file(work_dir, REPORT_DATA) if (work_dir / REPORT_DATA).is_file() else None
    if data is not None and data.get('format') != FORMAT:
        raise ValueError(f'{work_dir / REPORT_DATA} is of format {data.get("format")!r}, this '
                         f'version reads {FORMAT}; quantize again.')
    chosen = bool(results.get('budget')) and (work_dir / BUDGET).is_file()
    budget = read_file(work_dir, BUDGET) if chosen else None
    write_text(work_dir / REPORT, run_page(results, layers, data, budget))
    (work_dir / REPORT_ERROR).unlink(missing_ok=True)
    return work_dir / REPORT


def read_file(work_dir: Path, name: str) -> dict[str, Any]:
    """Reads a JSON file that a run leaves.

    Raises:
        ValueError: It is not there or not whole.
    """
    path = work_dir / name
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        missing = set(NEEDED.get(name, ())) - set(found if isinstance(found, dict) else ())
        if missing or not isinstance(found, dict):
            raise ValueError(f"it holds no '{min(missing)}'" if missing else 'it is no object')
    except (OSError, ValueError) as error:
        reason = 'there is none' if isinstance(error, FileNotFoundError) else error
        raise ValueError(f'{path} cannot be read ({reason}); pass the work directory of a '
                         'finished run of tools/quantize.py.') from error
    return found


def report_data(run: QuantizedRun, float_record: EvaluationRecord | None,
                quantized_record: EvaluationRecord, classes: Sequence[str]) -> dict[str, Any]:
    """Returns ``report_data.json``: what the report shows and no other file says."""
    layers, placed = {}, {**run.prepared.embeddings, **run.prepared.layers}
    for layer in run.report.layers:
        module = placed[layer.name]
        layers[layer.name] = {'ranges': layer.input_ranges, **_histograms(module)}
    data = {'format': FORMAT, 'layers': layers, 'classes': {}, 'pictures': {}, 'problems': []}
    if float_record is None:
        data['problems'].append(
            'This run did not evaluate the float model, and what it said of single images is not '
            'there: no classes and no images are compared.')
        return data
    data['problems'] += dict.fromkeys([*float_record.problems, *quantized_record.problems])
    if quantized_record.kind == 'classification':
        data['classes'] = _accuracy(float_record, quantized_record, classes)
    else:
        data['classes'] = _precision(float_record, quantized_record)
    with quantized_record.unharmed('Images could not be drawn'):
        data['pictures'] = most_changed(float_record, quantized_record, classes, data['problems'])
    data['problems'] = list(dict.fromkeys([*data['problems'], *quantized_record.problems]))
    return data


def _histograms(module: Any) -> dict[str, Any]:
    """How often each code comes: of the widest width, and of each where there are several."""
    if not getattr(module, 'several', False):
        return {'histogram': code_histogram(module.codes, module.num_bits)}
    solution = module.solution()
    found = {str(one.num_bits): code_histogram(one.codes, one.num_bits,
                                               narrow_range=solution.nesting != 'floor')
             for one in (*reversed(solution.narrower), solution)}
    return {'histogram': found[str(solution.num_bits)], 'histograms': found}


def _accuracy(float_record: EvaluationRecord, quantized_record: EvaluationRecord,
              classes: Sequence[str]) -> dict[str, list]:
    before, after = (
        accuracy_by_class([Answer.from_dict(image) for image in record.images.values()])
        for record in (float_record, quantized_record))
    rows = [{'class': _name(classes, label), 'float': before[label][0],
             'quantized': after[label][0], 'images': after[label][1]}
            for label in after if label in before]
    return {'accuracy': rows} if rows else {}


def _precision(float_record: EvaluationRecord, quantized_record: EvaluationRecord,
               ) -> dict[str, list]:
    result = {}
    for kind, after in quantized_record.precision.items():
        before = float_record.precision.get(kind, {})
        result[kind] = [{
            'class': name, 'float': before[name]['all'], 'quantized': sizes['all'],
            'sizes': {size: (before[name][size], value) for size, value in sizes.items()
                      if size != 'all' and None not in (value, before[name][size])},
        } for name, sizes in after.items() if name in before]
    return result


def most_changed(float_record: EvaluationRecord, quantized_record: EvaluationRecord,
                 classes: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Draws the images that the two models differ most on, the most changed first.

    Args:
        float_record, quantized_record: Of the two evaluations.
        classes: Names of the classes.
        problems: Images that cannot be read are added.
    """
    kind = quantized_record.kind
    common = [path for path in quantized_record.images if path in float_record.images]
    if kind is None or kind != float_record.kind or not common:
        return {}
    rank, draw = (_rank_detections, _draw_pair) if kind == 'detection' else \
        (_rank_answers, _draw_card)
    ranked = sorted(((rank(float_record.images[path], quantized_record.images[path]), path)
                     for path in common), key=lambda pair: pair[0], reverse=True)
    ranked = [(value, path) for value, path in ranked if value not in (0.0, (False, 0.0))]
    items, left = [], MOST_PICTURE_BYTES
    for value, path in ranked[:MOST_PICTURES[kind]]:
        try:
            item = draw(path, value, float_record.images[path], quantized_record.images[path],
                        classes)
        except OSError as error:  # images of a remote store, such as
            problems.append(f'{path} could not be drawn: {error}')
            continue
        left -= sum(len(item.get(side, '')) for side in ('float', 'quantized', 'image'))
        if left < 0:
            break
        items.append(item)
    return {'kind': kind, 'watched': len(common), 'total': quantized_record.total,
            'least_score': detections.LEAST_SCORE, 'items': items}


def _rank_detections(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    return detections.change(_detections(before), _detections(after))


def _rank_answers(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[bool, float]:
    return classification.change(Answer.from_dict(before), Answer.from_dict(after))


def _detections(image: Mapping[str, Any]) -> Detections:
    return Detections.from_dict({key: value for key, value in image.items() if key != 'size'})


def _draw_pair(path: str, value: float, before: Mapping[str, Any], after: Mapping[str, Any],
               classes: Sequence[str]) -> dict[str, Any]:
    from mmbitsplit.report import drawing

    image = drawing.read_image(path)
    ours, theirs = _detections(before), _detections(after)
    lost, new = detections.unmatched(ours, theirs)
    return {
        'name': Path(path).name, 'change': value, 'lost': len(lost), 'new': len(new),
        'counts': {'float': len(ours.labels), 'quantized': len(theirs.labels)},
        'float': drawing.to_data_uri(drawing.draw_detections(
            image, ours, lost, drawing.LOST, classes, tuple(before['size']))),
        'quantized': drawing.to_data_uri(drawing.draw_detections(
            image, theirs, new, drawing.NEW, classes, tuple(after['size'])))}


def _draw_card(path: str, value: tuple[bool, float], before: Mapping[str, Any],
               after: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    from mmbitsplit.report import drawing

    sides = {'float': Answer.from_dict(before), 'quantized': Answer.from_dict(after)}
    truth = sides['quantized'].truth
    return {
        'name': Path(path).name, 'change': value[1],
        'image': drawing.to_data_uri(drawing.small_picture(drawing.read_image(path), 220)),
        'answers': {side: f'{_name(classes, answer.labels[0])} ({answer.scores[0]:.2f})'
                    for side, answer in sides.items()},
        'right': {side: None if truth is None else answer.labels[0] == truth
                  for side, answer in sides.items()},
        'truth': None if truth is None else _name(classes, truth)}


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else str(label)


def save_record(path: Path, record: EvaluationRecord) -> None:
    """Keeps a record where a resumed run finds it."""
    write_json(path, record.to_dict())


def load_record(path: Path) -> EvaluationRecord | None:
    """Reads a record; ``None`` where there is none, or what is there is damaged."""
    try:
        return EvaluationRecord.from_dict(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        return None
