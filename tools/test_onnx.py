"""Evaluates exported ONNX graphs with a runtime; data, post-processing and metrics are upstream's."""

from mmbitsplit.cli.test_onnx import main
from mmbitsplit.engine.distributed import end_with

if __name__ == '__main__':
    end_with(main)
