"""Quantizes one config of every family of the installed mmdet and mmpretrain, untrained.

Each model runs in a process of its own, with limits of time and memory, and leaves a JSON in
``--out``; one that is there is not run again. ``--page`` writes them as a page. No data and no
weights are needed.
"""

import argparse
import contextlib
import fnmatch
import json
import math
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))

import mmbitsplit.cli  # noqa: E402, F401  before torch: its threads wait without spinning

# isort: split
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

import mmbitsplit.engine  # noqa: E402, F401  before mmpretrain: it declares missing operators
from benchmarks.model_probe import ROWS, probe  # noqa: E402
from mmbitsplit.engine.configs.default_request import task_of  # noqa: E402
from mmbitsplit.engine.configs.upstream_configs import MARK, find_upstream  # noqa: E402
from mmbitsplit.version import __version__  # noqa: E402

PACKAGES = ('mmdet', 'mmpretrain')
PAGE = ROOT / 'docs' / 'supported_models.md'
# Smaller or plainer than what a family's metafile names first.
CHOSEN = {
    'mmdet::cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'mmdet::dino': 'dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::faster_rcnn': 'faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::guided_anchoring': 'ga-retinanet_r50-caffe_fpn_1x_coco.py',
    'mmdet::mask2former': 'mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::mask_rcnn': 'mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::nas_fpn': 'retinanet_r50_nasfpn_crop640-50e_coco.py',
    'mmdet::regnet': 'mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco.py',
    'mmdet::seesaw_loss': 'mask-rcnn_r50_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1.py',
    'mmdet::swin': 'mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'mmdet::tood': 'tood_r50_fpn_1x_coco.py',
    'mmdet::yolox': 'yolox_tiny_8xb8-300e_coco.py',
    'mmpretrain::resnest': 'resnest50_32xb64_in1k.py',
    'mmpretrain::resnet': 'resnet18_8xb32_in1k.py',
    'mmpretrain::vision_transformer': 'vit-base-p16_64xb64_in1k.py',
}
# Folders of data sets and training recipes, whose architectures are those of other families; and
# what detects no objects (lanes, people again).
RECIPES = {
    'mmdet': ('albu_example', 'bytetrack', 'cityscapes', 'clrnet', 'common', 'deepfashion', 'dsdl',
              'instaboost', 'legacy_1.x', 'lvis', 'misc', 'objects365', 'openimages', 'pascal_voc',
              'reid', 'resnet_strikes_back', 'scratch', 'selfsup_pretrain', 'simple_copy_paste',
              'soft_teacher', 'sort', 'strongsort', 'v3det', 'wider_face'),
    'mmpretrain': ('eva',)}  # of ViT-L and larger alone
LONGEST_REASON = 150
INTRODUCTION = """# Supported models

One config a family of the detectors of mmdet and the classifiers of mmpretrain, quantized with
random weights. Of the {planned} that the command below knows, {all} have been run so far,
and {done} of those finish. Any other config of these packages is
[given by its name](get_started.md#a-config-by-name-a-command) likewise. Folders of data sets and
training recipes are left out, their architectures are those of others; so are trackers,
self-supervised pre-training and models of language and images. The tables are written by

```
python benchmarks/supported_models.py --page
```

**Weights** is the part of all parameters that is stored as codes, **multiplications** the part of
those in convolutions, linear layers and matrix products that is done with codes. What is missing
to 100 % stays float; the last column names what has most weights of it, with its part of all
parameters.

**Errors** are squared differences to the float model's output at the same place, relative to how
much that varies; the median of all layers, and in brackets of the layers that give the outputs.
They are those of *random* layers, rounded to nearest, with four synthetic images of 160x192 for
detectors, eight of a classifier's own size, and {rows} positions a layer: they show that nothing
breaks on the way, not what a trained model loses. 4 bits without training cost random layers
much; what a random classifier pools hardly differs between images, so that its outputs' error is
large (what MobileOne pools is about 4.00 with a spread of 0.07 over images). An error about 1 or
above at W8A8 is a reason to look at that model's report: rows that belong to different things are
compared, or a layer amplifies what rounding changes.

**Integers** compares the model at W4A8 [multiplying integers](deploy.md#integers-inside-torch) with
itself simulating them: how many layers do, the largest difference of a layer's output on equal
inputs, relative to its largest value, and in brackets the squared difference of the model's output
layers in a whole run, relative to their spread (– where it makes other calls, of other proposals
for one). The first is rounding of float32; the second is larger, since a rounded input that lies on
a border falls to either side, which random layers amplify.

What does not finish mostly ends in the package's own code, before or without quantization: weights
of a second network to be fetched (no network here), operators that are not built for CPUs, packages
that are not installed, random boxes that a step cannot take.

How random layers are made decides their errors. Batch norms have the statistics of the images, half
their weights, and biases one higher: with whole weights and no bias random layers amplify rounding
from one to the next, and YOLOX-tiny's outputs had errors of 0.55 and 11.6 instead of those below.
"""


def families(package: str) -> Iterator[tuple[str, str]]:
    """Yields each family of a package and the name of the config that stands for it."""
    configs = find_upstream(f'{package}::{_any_config(package)}').parents[1]
    for folder in sorted(path for path in configs.iterdir() if path.is_dir()):
        if folder.name in ('_base_', *RECIPES[package]):
            continue
        chosen = CHOSEN.get(f'{package}{MARK}{folder.name}') or _first_config(folder)
        if chosen is not None:
            yield f'{package}{MARK}{folder.name}', f'{package}{MARK}{folder.name}/{chosen}'


def chosen_configs(patterns: Sequence[str]) -> list[str]:
    """Lists the configs of some patterns, in their order; none where there is no pattern."""
    whole = [pattern for pattern in patterns if pattern.endswith('.py') and '*' not in pattern]
    if len(whole) == len(patterns):
        return whole
    # In turn: what an interrupted sweep has done is of both packages.
    turns = zip_longest(*([name for _, name in families(package)] for package in PACKAGES))
    names = [name for turn in turns for name in turn if name is not None]
    return list(dict.fromkeys(
        name for pattern in patterns for name in (
            [pattern] if pattern in whole else fnmatch.filter(names, pattern))))


def _any_config(package: str) -> str:
    return {'mmdet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
            'mmpretrain': 'resnet/resnet18_8xb32_in1k.py'}[package]


def _first_config(folder: Path) -> str | None:
    """The first config of a family that is a detector or a classifier, published ones first."""
    names = []
    metafile = folder / 'metafile.yml'
    if metafile.is_file():
        names = [line.split('Config:')[1].strip().rsplit('/', 1)[-1]
                 for line in metafile.read_text(encoding='utf-8').splitlines()
                 if 'Config:' in line]
    names += sorted(path.name for path in folder.glob('*.py'))
    tried = [name for name in dict.fromkeys(names) if (folder / name).is_file()]
    for name in tried[:12]:
        with contextlib.suppress(Exception):  # whatever a config raises, or a class that is missing
            cfg = Config.fromfile(folder / name)
            task_of(cfg)
            return name
    return None


def run_model(name: str, out: Path, seconds: float, gigabytes: float, start: str = 'fork',
              ) -> dict[str, Any]:
    """Probes one model in a process of its own; returns what its JSON holds.

    Args:
        name: Of the config, with its package.
        out: Folder of the results.
        seconds: Processor time that it may take, and a tenth of the time on the clock: on a busy
            machine a model does not fail for what others do.
        gigabytes: Memory that it may hold.
        start: How the process starts: ``'spawn'`` where this one has run kernels on threads, after
            which GNU OpenMP ends a forked one that does so, too.
    """
    path = out / f'{_stem(name)}.json'
    started = time.perf_counter()
    process = get_context(start).Process(target=_child, args=(name, path, seconds, gigabytes))
    process.start()
    process.join(10 * seconds)
    late = process.is_alive() or process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
    if process.is_alive():
        process.kill()
        process.join()
    failed = f'more than {seconds:g} s' if late else f'the process ended with {process.exitcode}'
    result = json.loads(path.read_text()) if path.is_file() else {
        'config': name, 'failed': failed}
    result['seconds'] = round(time.perf_counter() - started, 1)
    path.write_text(json.dumps(result, indent=1) + '\n')
    return result


def _child(name: str, path: Path, seconds: float, gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
    torch.set_num_threads(1)
    with open(path.with_suffix('.log'), 'w', encoding='utf-8') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        result: dict[str, Any] = {'config': name, 'version': __version__}
        try:
            package_path = find_upstream(name)
            result.update(probe(package_path.name, Config.fromfile(package_path)))
        except MemoryError:
            result['failed'] = f'more than {gigabytes:.0f} GB'
        except BaseException as error:
            traceback.print_exc()
            text = ' '.join(str(error).split())
            if "can't allocate memory" in text:
                text = f'more than {gigabytes:.0f} GB'
            result['failed'] = f'{type(error).__name__}: {text}'
        result['peak_rss_bytes'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        path.write_text(json.dumps(result, indent=1) + '\n')
        log.flush()
    os._exit(0)  # what a model's libraries left running ends with it


def _stem(name: str) -> str:
    return name.replace(MARK, '__').replace('/', '__').removesuffix('.py')


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of the results as Markdown."""
    done = [result for result in results if 'failed' not in result]
    parts = [INTRODUCTION.format(done=len(done), all=len(results), rows=ROWS,
                                 planned=len(chosen_configs(['*'])))]
    for package in PACKAGES:
        rows = [result for result in results if result['config'].startswith(package + MARK)]
        if rows:
            parts.append('\n'.join([
                f'## {package}', '', '<!-- no results: from benchmarks/supported_models.py -->',
                '| Config | Layers | Weights | Multiplications | Error W8A8 | Error W4A8 | '
                'Integers | Most of what stays float |', '|---|---:|---:|---:|---:|---:|---|---|',
                *map(_row, sorted(rows, key=lambda row: row['config'])), '']))
    return '\n'.join(parts)


def _row(result: Mapping[str, Any]) -> str:
    name = result['config'].split(MARK)[1]
    if 'failed' in result:
        return f'| {name} | – | – | – | – | – | – | does not finish: {_short(result["failed"])} |'
    kept = result['kept_float'][:1]
    cells = [str(result['layers']), _percent(result['share_of_weights']),
             _percent(result['share_of_multiplications']),
             *(_errors(result['errors'][bits]) for bits in ('W8A8', 'W4A8')),
             _integers(result['integers']),
             *(f'{part["kind"]}: {_short(part["reason"])} ({_percent(part["share"])})'
               for part in kept)]
    return f'| {name} | {" | ".join(cells)}{"" if kept else " | "} |'


def _errors(errors: Mapping[str, Any]) -> str:
    return f"{_figure(errors['layers'])} ({_figure(errors['outputs'])})"


def _integers(integers: Mapping[str, Any]) -> str:
    return (f"{integers['layers']}: {_figure(integers['equal_inputs'])} "
            f"({_figure(integers['outputs'])})")


def _percent(share: float | None) -> str:
    return '–' if share is None else f'{100 * share:.1f} %'


def _figure(error: float | None) -> str:
    return '–' if error is None else f'{error:.1e}'


def _short(text: str) -> str:
    text = text.replace('|', '/').replace('<', '(').replace('>', ')').replace('`', "'")
    text = text.replace(str(Path.home()), '~').replace(sys.prefix, '')
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON - 1] + '…'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/supported_models')
    parser.add_argument('--only', nargs='*', default=['*'], metavar='PATTERN',
                        help="configs of these names, such as 'mmdet::rtmdet/*'; a whole name may "
                        'be that of any config')
    parser.add_argument('--redo', choices=['failed', 'all'],
                        help='run again what failed, or everything')
    parser.add_argument('--seconds', type=float, default=300,
                        help='processor time that a model may take')
    parser.add_argument('--gigabytes', type=float, default=12,
                        help='memory that a model may hold')
    parser.add_argument('--page', action='store_true', help=f'write {PAGE.relative_to(ROOT)}')
    parser.add_argument('--list', action='store_true', help='list the configs and end')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = chosen_configs(args.only)
    if args.list:
        print('\n'.join(names))
        return
    print(f'{platform.processor() or platform.machine()}, torch {torch.__version__}, '
          f'{len(names)} configs', flush=True)
    for name in names:
        path = args.out / f'{_stem(name)}.json'
        if path.is_file() and args.redo != 'all' and not (
                args.redo == 'failed' and 'failed' in json.loads(path.read_text())):
            continue
        path.unlink(missing_ok=True)
        result = run_model(name, args.out, args.seconds, args.gigabytes)
        said = result.get('failed') or ', '.join(
            f"{bits} {_figure(error['outputs'])}" for bits, error in result['errors'].items())
        print(f"{name}: {_short(said)}; {result['seconds']} s", flush=True)
    if args.page:
        results = [json.loads(path.read_text()) for path in sorted(args.out.glob('*.json'))]
        PAGE.write_text(page(results), encoding='utf-8')


if __name__ == '__main__':
    main()
