"""A small model of every kind of layer, and the script that wrote the packed files beside it.

``packed_v1.pth`` is what mmbitsplit 0.1 wrote before files had a format version, ``packed_v2.pth``
the same request in format version 2, ``packed_v3.pth`` version 3: the same model, which narrower
widths have been given to, ``packed_v4.pth`` that in version 4, whose steps of scales are coarser.
They are kept: whoever changes the format adds a file and leaves these alone. From the project's
folder, ``python tests/packed_files/packed_model.py FOLDER`` writes ``quantized.pth`` as a run of
one width writes it, and ``several.pth``.
"""

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

SPEC = dict(
    weight=dict(num_bits=3), activation=dict(num_bits=4),
    calibration=dict(num_images=4, rows_per_layer=512),
    overrides=[dict(match='float_conv', skip=True),
               dict(match='depthwise', weight=dict(num_bits=5),
                    activation=dict(mode='per_channel', symmetry='asymmetric')),
               dict(match='grouped', activation=dict(mode='per_tensor'))])


class PackedModel(BaseModel):
    """Convolutions (plain, depthwise, grouped, transposed), linear layers, float leftovers."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7, bias=False)
        self.norm = nn.GroupNorm(1, 7)
        self.expand = nn.Conv2d(7, 10, 1)
        self.grouped = nn.Conv2d(10, 6, 3, stride=2, groups=2)
        self.float_conv = nn.Conv2d(6, 5, 1)
        self.up = nn.ConvTranspose2d(5, 9, 2, 2)
        self.hidden, self.head = nn.Linear(9, 11, bias=False), nn.Linear(11, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.relu(self.bn(self.stem(inputs)))
        x = self.norm(self.depthwise(x))
        x = torch.relu(self.grouped(torch.nn.functional.silu(self.expand(x))))
        x = torch.relu(self.up(torch.relu(self.float_conv(x)))).amax((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def float_model(seed: int = 0) -> PackedModel:
    """The float model with settled batch norm statistics, in eval mode."""
    torch.manual_seed(seed)
    model = PackedModel()
    for value in model.parameters():
        if value.dim() > 1:
            nn.init.kaiming_normal_(value)
    nn.init.uniform_(model.bn.running_var, 0.5, 2)
    nn.init.normal_(model.bn.running_mean)
    return model.eval()


def inputs() -> torch.Tensor:
    """(4, 3, 9, 8) images, the same everywhere."""
    return torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def write(folder: Path) -> torch.Tensor:
    """Quantizes the model, writes the files of a run; returns what it makes of ``inputs``."""
    from mmbitsplit.calibration import calibrate
    from mmbitsplit.engine.data.calibration_data import CalibrationData
    from mmbitsplit.engine.results.artifacts import save_run
    from mmbitsplit.engine.run.quantize import QuantizedRun, tensor_bytes
    from mmbitsplit.structures import QuantSpec

    spec, x, model = QuantSpec.from_dict(SPEC), inputs(), float_model()
    float_bytes = tensor_bytes(model)
    prepared, report = calibrate(model, list(x.split(1)), spec,
                                 run=lambda model, batch: model(batch))
    data = CalibrationData([], [], [11, 12, 13, 14], [])
    save_run(folder, Config(dict(model=dict(type='PackedModel'))), spec,
                   QuantizedRun(prepared, report, data, float_bytes),
                   dict(classes=('cat', 'dog')))
    with torch.no_grad():
        return prepared.model(x)


def write_several(path: Path, one_width: Path) -> None:
    """Writes a checkpoint whose layers have narrower widths, too, made of one of one width.

    Args:
        path: Where to.
        one_width: The checkpoint that has the widest of them.
    """
    from width_solutions import with_narrower  # of tests/helpers

    from mmbitsplit.export import read_checkpoint
    from mmbitsplit.models import rebuild

    kept, model = read_checkpoint(one_width), float_model()
    rebuild(model, kept.description)
    model.load_state_dict({name.removeprefix('model.'): value
                           for name, value in kept.state.items()})
    torch.save(with_narrower(model, kept), path)


if __name__ == '__main__':
    print(write(Path(sys.argv[1])).tolist())
    sys.path.append(str(Path(__file__).parents[1] / 'helpers'))
    write_several(Path(sys.argv[1]) / 'several.pth', Path(sys.argv[1]) / 'quantized.pth')
