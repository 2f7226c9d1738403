"""Package description. The version lives in mmbitsplit/version.py."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent

# What `mim` looks for in mmbitsplit/.mim. Demo, bench, CIFAR configs and set-up belong to a
# checkout: the demo's weights (9 MB) and data, the packages bench/ and demo/, and the network of
# the CIFAR configs, are only there. The model index leaves their metafiles out.
MIM = {'tools': ('*.py', '*.sh'), 'configs': ('*.py', '*.yml', '*.md'),
       'model-index.yml': ('model-index.yml',)}
MIM_WITHOUT = ('tools/setup', 'tools/demo_summary.py', 'tools/make_demo_data.py',
               'tools/paper_tables.py', 'tools/store_results.py', 'tools/update_tables.py',
               'configs/demo', 'configs/cifar')

# Seen to work together: Python 3.11, torch 2.13 (CPU), numpy 2.2, and the `mm` versions named by
# the lower bounds below. The ranges are wider so that nobody's own torch is replaced.
INSTALL_REQUIRES = ['torch>=2.4', 'numpy>=1.24', 'greenlet>=3.0', 'numba>=0.60']

EXTRAS_REQUIRE = {
    'mm': [
        'onedl-mmengine>=0.10.12,<0.11',
        'onedl-mmcv>=2.3.6,<2.4',
        'onedl-mmdetection>=3.5.1,<3.6',
        'onedl-mmpretrain>=1.3.6,<1.4',
        'torchvision',
    ],
    'demo': ['scikit-learn>=1.3', 'pycocotools>=2.0.6', 'opencv-python'],
    'report': ['jinja2>=3.1,<4', 'plotly>=6.0,<8', 'pillow>=10.1'],
    # Export needs torch>=2.8 (torch.onnx.ops); tried: onnx 1.23, onnxscript 0.7, onnx-ir 1.1,
    # onnxruntime 1.31, openvino 2026.4.
    'onnx': ['onnx>=1.23,<2', 'onnxscript>=0.7,<0.8', 'onnx-ir>=1.1,<2',
             'onnxruntime>=1.23,<2', 'openvino>=2026.4,<2027'],
    # Sphinx 9.0 is tried; 7.4 is the first whose directives can parse text of their own making.
    'docs': ['sphinx>=7.4,<10', 'myst-parser>=4,<6', 'furo>=2024.8', 'matplotlib>=3.8'],
    # quantized.safetensors, and `mmbitsplit card --push`; tried: safetensors 0.8.
    'hub': ['safetensors>=0.4.3', 'huggingface_hub>=0.23'],
    'lapq': ['scipy>=1.9,<2'],  # method LAPQ
    'budget': ['scipy>=1.9,<2'],  # quantization.budget
    # Models of Hugging Face, and benchmarks/sentences.py; tried: transformers 4.57 and 5.24. With 5
    # onedl-mmpretrain 1.3.6 cannot be imported, and mmdet with it, unless mmbitsplit is before.
    'language': ['transformers>=4.57,<5', 'tokenizers', 'safetensors', 'scipy>=1.9,<2'],
    # Integers on a GPU; torch for CUDA on Linux brings it. Here it is for a CPU's interpreter,
    # which the tests of kernels run in (290 MB, and so in none of the others); tried: 3.9.
    'gpu': ['triton>=3.4; platform_system == "Linux"'],
    'test': ['pytest>=7', 'pytest-cov>=7,<8', 'pytest-xdist>=3.8,<4', 'ruff', 'mypy>=2.4,<3',
             'hypothesis>=6.100,<7', 'nbclient>=0.11,<0.12', 'nbformat>=5.11,<6',
             'ipykernel>=6.29,<8', 'tensorboard>=2.19', 'mlflow-skinny>=3.1'],
}
EXTRAS_REQUIRE['all'] = sorted({name for extra, names in EXTRAS_REQUIRE.items() if extra != 'gpu'
                                for name in names})


class BuildWithMim(build_py):
    """Adds tools, configs and model index: copies in a wheel, links in an editable install."""

    def run(self):
        super().run()
        if self.editable_mode:
            link_mim(HERE / 'mmbitsplit' / '.mim')
        else:
            copy_mim(Path(self.build_lib) / 'mmbitsplit' / '.mim')


def link_mim(folder: Path) -> None:
    """Makes a folder of relative links, which survive moving the checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in MIM:
        if (HERE / name).exists():
            (folder / name).symlink_to(os.path.relpath(HERE / name, folder))


def copy_mim(folder: Path) -> None:
    """Copies what an installed package needs, nothing that only a checkout can use."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, patterns in MIM.items():
        root = HERE / name
        for path in [root] if root.is_file() else sorted(root.rglob('*')):
            relative = path.relative_to(HERE)
            if path.is_file() and any(path.match(pattern) for pattern in patterns) \
                    and not relative.as_posix().startswith(MIM_WITHOUT):
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, folder / relative)


def read_version() -> str:
    """The version, without importing the package (which may need what is not installed yet)."""
    text = (HERE / 'mmbitsplit' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)[1]


def read_readme() -> str:
    """The long description, when the README is there."""
    path = HERE / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


setup(
    name='mmbitsplit',
    version=read_version(),
    description='Post-training quantization for OpenMMLab detectors and classifiers',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmbitsplit', 'mmbitsplit.*']),
    package_data={'mmbitsplit': ['py.typed', '**/*.html', '**/*.css', '**/*.js']},
    cmdclass={'build_py': BuildWithMim},
    entry_points={'console_scripts': ['mmbitsplit = mmbitsplit.cli.main:start']},
    python_requires='>=3.10',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        'Programming Language :: Python :: 3',
        'Operating System :: POSIX :: Linux',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
