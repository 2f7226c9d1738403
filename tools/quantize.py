"""Quantizes the model of a config: float figures, quantized figures, checkpoint, tables."""

from mmbitsplit.cli.quantize import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
