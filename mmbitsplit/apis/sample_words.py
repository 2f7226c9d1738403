"""Says "samples" where messages and reports say "images" and the calibration data are none."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmbitsplit.passes.batches import holds_images
from mmbitsplit.structures import QuantizationReport

# Names stand in quotes and stay as they are.
_WORD = re.compile(r"""('[\w.*<>\[\]-]+'|"[\w.*<>\[\]-]+")|\b([Ii])mage(s?)\b""")


def are_images(batches: Iterable[Any]) -> bool:
    """Whether a batch holds something that looks like images, or maps of four dimensions."""
    return any(holds_images(batch) or any(isinstance(leaf, Tensor) and leaf.dim() > 3
                                          for leaf in tree_leaves(batch)) for batch in batches)


def of_samples(text: str) -> str:
    """A sentence on images as one on samples."""
    def word(found: re.Match) -> str:
        if found[1]:
            return found[1]
        return ('s' if found[2] == 'i' else 'S') + 'ample' + found[3]
    return re.sub(r'\b([Aa])n (?=sample\b)', r'\1 ', _WORD.sub(word, text))


def reworded(error: Exception) -> Exception:
    """The same error, whose message is on samples."""
    if isinstance(error, ValueError) and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (of_samples(error.args[0]),)
    return error


def reword_report(report: QuantizationReport) -> None:
    """Rewords notes, reasons and warnings of a report, in place."""
    for part in (*report.layers, *report.products):
        part.notes[:] = map(of_samples, part.notes)
    report.warnings[:] = map(of_samples, report.warnings)
    report.kept_float[:] = [replace(part, reason=of_samples(part.reason))
                            for part in report.kept_float]
    report.units[:] = [replace(unit, reason=of_samples(unit.reason)) for unit in report.units]
