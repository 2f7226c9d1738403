"""Exports a quantized checkpoint to ONNX, in int8 that runtimes run in integers or in int4."""

from mmbitsplit.cli.export_onnx import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
