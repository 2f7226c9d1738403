"""Runs exported graphs with onnxruntime or OpenVINO on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.structures.options import check_choice

RUNTIMES = ('onnxruntime', 'openvino')


class OnnxGraph:
    """An ONNX file loaded into a runtime; called with tensors, it returns tensors.

    Args:
        path: The file.
        runtime: ``'onnxruntime'`` or ``'openvino'``.
        threads: Threads of one call; ``None`` leaves the choice to the runtime.

    Raises:
        ValueError: Unknown or missing runtime, or a file that it does not load.
    """

    def __init__(self, path: str | Path, runtime: str = 'onnxruntime',
                 threads: int | None = None):
        check_choice('runtime', runtime, RUNTIMES)
        self.path, self.runtime = Path(path), runtime
        load = onnxruntime_session if runtime == 'onnxruntime' else openvino_model
        try:
            self.loaded = load(path, threads)
        except (RuntimeError, OSError) as error:  # both runtimes derive theirs from RuntimeError
            raise _unloadable(path, runtime, error) from error
        except Exception as error:
            if type(error).__module__.split('.')[0] != 'onnxruntime':
                raise
            raise _unloadable(path, runtime, error) from error
        ports = self.loaded.get_inputs() if runtime == 'onnxruntime' else self.loaded.inputs
        self.input_names = [port.name if runtime == 'onnxruntime' else port.get_any_name()
                            for port in ports]
        self.input_shapes = [_shape(port, runtime) for port in ports]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Computes the outputs; images of a batch go one by one where the file takes only one.

        Raises:
            ValueError: An input has not the shape that the file was exported for.
        """
        fixed = self.input_shapes[0][0]
        if fixed is None or len(inputs[0]) == fixed:
            return self._run(inputs)
        if len(inputs[0]) % fixed:
            raise self._wrong_shape(inputs[0], 0)
        parts = [self._run([value[start:start + fixed] for value in inputs])
                 for start in range(0, len(inputs[0]), fixed)]
        return [torch.cat(outputs) for outputs in zip(*parts)]

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for index, (value, shape) in enumerate(zip(inputs, self.input_shapes)):
            if len(shape) != value.dim() or any(
                    size not in (None, actual) for size, actual in zip(shape, value.shape)):
                raise self._wrong_shape(value, index)
        arrays = [np.ascontiguousarray(value.detach().cpu().numpy()) for value in inputs]
        if self.runtime == 'onnxruntime':
            outputs = self.loaded.run(None, dict(zip(self.input_names, arrays)))
        else:
            result = self.loaded(arrays)
            outputs = [result[port].copy() for port in self.loaded.outputs]
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    def _wrong_shape(self, value: Tensor, index: int) -> ValueError:
        allowed = ' x '.join('any' if size is None else str(size)
                             for size in self.input_shapes[index])
        return ValueError(
            f"{self.path}: input '{self.input_names[index]}' has shape {tuple(value.shape)}, the "
            f'file takes {allowed}. Export it with --dynamic, or with --shape of these images.')


def onnxruntime_session(path: str | Path, threads: int | None = None,
                        optimized_to: str | Path | None = None) -> Any:
    """Loads a file into onnxruntime, all optimizations on.

    Args:
        path: The file.
        threads: Threads of one call.
        optimized_to: Where the optimized graph is written, if anywhere.
    """
    runtime = need('onnxruntime')
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
    return runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def openvino_model(path: str | Path, threads: int | None = None) -> Any:
    """Compiles a file with OpenVINO for the CPU; what is float runs in float32, not bfloat16."""
    openvino = need('openvino')
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    if threads is not None:
        settings['INFERENCE_NUM_THREADS'] = threads
    return openvino.Core().compile_model(str(path), 'CPU', settings)


def restore(outputs: Sequence[Tensor], structure: Any) -> Any:
    """Nests a graph's outputs as the traced module returned them.

    Args:
        outputs: In the graph's order.
        structure: Their names, nested (``read_metadata(path)['outputs']``).
    """
    remaining = iter(outputs)

    def build(part: Any) -> Any:
        return [build(item) for item in part] if isinstance(part, list) else next(remaining)

    return build(structure)


def _shape(port: Any, runtime: str) -> list[int | None]:
    if runtime == 'onnxruntime':
        return [size if isinstance(size, int) else None for size in port.shape]
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]


def _unloadable(path: str | Path, runtime: str, error: Exception) -> ValueError:
    return ValueError(f'{path} cannot be loaded by {runtime}: {" ".join(str(error).split())}. '
                      'Export it again with tools/export_onnx.py.')
