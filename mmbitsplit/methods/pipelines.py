"""Whole procedures of papers by name: a method and what comes after it, as parts of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbitsplit.spelling import nearest
from mmbitsplit.structures import QuantSpec

PARTS = ('type', 'method', 'tuning')


@dataclass(frozen=True)
class Pipeline:
    """What a name stands for; widths come from ``quantization.budget``, or as requested.

    Args:
        method: As ``quantization.method``.
        tuning: As ``quantization.tuning``.
    """

    method: Mapping[str, Any]
    tuning: Sequence[Mapping[str, Any]]


# Hubara et al., ICML 2021. Light: nothing is learned, the model is only run. Advanced: each layer
# is learned on what the float model gives it, so that what comes of it does not depend on the
# widths of others, which may then be chosen.
PIPELINES = {
    'CalibTIPLight': Pipeline({'type': 'RoundToNearest'}, ({'type': 'NormReestimation'},)),
    'CalibTIPAdvanced': Pipeline({'type': 'AdaQuant', 'flavour': 'parallel'},
                                 ({'type': 'NormReestimation'}, {'type': 'BiasTuning'})),
}


def fill_pipeline(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fills method and tuning of a ``quantization`` dict that names a pipeline.

    Args:
        mapping: Its ``pipeline`` is a name, or a dict with the name as ``type`` and with another
            ``method`` (options alone are of the pipeline's own) or ``tuning``. A ``method`` beside
            it may be the default, which configs inherit.

    Raises:
        ValueError: The name or a key is not known, or the request has another method or tuning.
    """
    given = mapping.get('pipeline')
    if given is None:
        return mapping
    parts = {'type': given} if isinstance(given, str) else given
    if not isinstance(parts, Mapping) or not isinstance(parts.get('type'), str):
        raise ValueError(f'quantization.pipeline={given!r} is neither a name nor a dict with a '
                         f"'type', of {', '.join(PIPELINES)}.")
    name = parts['type']
    if name not in PIPELINES:
        raise ValueError(f"quantization.pipeline='{name}' is not known; "
                         f'{nearest(name, PIPELINES)}.')
    for key in parts:
        if key not in PARTS:
            raise ValueError(f"Unknown key '{key}' in quantization.pipeline: "
                             f'{nearest(key, PARTS)}.')
    method = dict(parts.get('method', {}))
    if 'type' not in method:
        method = {**PIPELINES[name].method, **method}
    tuning = parts.get('tuning', PIPELINES[name].tuning)
    filled = {'method': method, 'tuning': _stages(tuning)}
    inherited = {'method': [dict(QuantSpec().method)], 'tuning': []}
    for part, value in filled.items():
        written = mapping.get(part)
        if written is not None:
            written = _stages(written) if part == 'tuning' else dict(written)
        if written is not None and written not in (value, *inherited[part]):
            raise ValueError(
                f'quantization.{part}={written!r} is not what quantization.pipeline='
                f"'{name}' has, {value!r}. Leave {part} out, or give it inside: "
                f"pipeline=dict(type='{name}', {part}=...).")
    return {**mapping, **filled}


def check_pipeline(spec: QuantSpec) -> None:
    """Raises ``ValueError`` for a request that names a pipeline and was not filled by it."""
    filled = fill_pipeline({'pipeline': spec.pipeline})
    if spec.pipeline is not None and (dict(spec.method) != filled['method']
                                      or _stages(spec.tuning) != filled['tuning']):
        raise ValueError(f'The request names quantization.pipeline={spec.pipeline!r} and has '
                         f'method={spec.method!r}, tuning={spec.tuning!r} instead of '
                         f'what that stands for. Give it as a dict, or through '
                         'calibration.read_request, which fills it.')


def _stages(tuning: Any) -> list[dict[str, Any]]:
    return [dict(stage) if isinstance(stage, Mapping) else stage
            for stage in ([tuning] if isinstance(tuning, Mapping) else tuning)]
