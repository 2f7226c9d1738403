"""Divides a config's model into the parts that are reconstructed together, and prints them."""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.cli.command import add_debug, positive, run_module

EXAMPLE = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py --untrained'
COLUMNS = ('unit', 'modules', 'layers', 'weights', 'why no larger one')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument('--images', type=positive, default=4,
                        help='calibration images to look at; default 4')
    parser.add_argument('--untrained', action='store_true',
                        help='random weights: what a detector finds, and with it what its second '
                        'stage is called on, is random then')
    parser.add_argument('--synthetic', action='store_true',
                        help='look at a made-up image instead of calibration images; so also '
                        "where the config's data set is missing and no --data-root is given")
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the float model on a few images and prints its units."""
    from mmbitsplit.apis.units import units_of_config
    from mmbitsplit.cli.complete_request import note, read_request_config
    from mmbitsplit.engine.run.preflight import missing_data
    from mmbitsplit.engine.run.quantize import read_spec

    if args.launcher != 'none':
        raise ValueError(f'--launcher {args.launcher}: this tool works in one process; leave the '
                         'option out.')
    cfg = read_request_config(args)
    spec = read_spec(cfg)  # --images below would make a request where there is none
    missing = None if args.synthetic or args.data_root else missing_data(cfg, spec.calibration)
    if missing is not None:
        note(f'{missing[1]} does not exist: the units are those that a made-up image shows; with '
             'the data set there (--data-root FOLDER), those that calibration images show')
    cfg.merge_from_dict({'quantization.calibration.num_images': args.images})
    with contextlib.redirect_stdout(sys.stderr):  # of others: logs, what data sets tell
        units = units_of_config(cfg, untrained=args.untrained,
                                synthetic=args.synthetic or missing is not None)
    print(json.dumps(units, indent=2) if args.json else text_of(units))
    return 0


def text_of(units: Sequence[Mapping[str, Any]]) -> str:
    """Returns a row a unit and a line in all."""
    from mmbitsplit.report.tables import text_table

    rows = [[unit['name'], modules_text(unit), str(len(unit['layers'])),
             str(unit['num_weights']), unit['reason']] for unit in units]
    alone = sum(len(unit['layers']) == 1 for unit in units)
    return '\n'.join([text_table(COLUMNS, rows), '',
                      f"{sum(len(unit['layers']) for unit in units)} layers in {len(units)} units, "
                      f'{alone} of one layer'])


def modules_text(unit: Mapping[str, Any]) -> str:
    """Returns the class of a single module, or how far a chain of modules goes."""
    modules = unit['modules']
    return unit['kind'] if len(modules) == 1 else f'chain of {len(modules)}, to {modules[-1]}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv, 'python tools/analysis_tools/units.py')
