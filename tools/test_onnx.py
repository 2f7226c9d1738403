"""Evaluates exported ONNX graphs with a runtime inside upstream's evaluation."""

from mmbitsplit.cli.test_onnx import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
