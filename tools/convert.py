"""Writes quantized.pth as quantized.safetensors with a JSON summary beside it, or back as .pth."""

from mmbitsplit.cli.convert import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
