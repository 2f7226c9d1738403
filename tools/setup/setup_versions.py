"""What the set-up installs: the versions that were seen to work together.

setup.py states wider ranges for people who bring their own environment.
"""

PYTHON_RANGE = ((3, 10), (3, 14))  # first and last for which the registry has every package
TRIED_PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13))

TORCH = 'torch==2.13.0'
TORCHVISION = {'torch==2.13.0': 'torchvision==0.28.0'}  # other torch: pip picks the one that fits

MMCV = 'onedl-mmcv==2.3.6'
CPP20_SINCE = (2, 14)  # the first torch whose headers are C++20; onedl-mmcv compiles as C++17
MM_PACKAGES = (
    'onedl-mmengine==0.10.12',
    'onedl-mmdetection==3.5.1',
    'onedl-mmpretrain==1.3.6',
)

# imaug, which onedl-mmdetection depends on, wants this old OpenCV. Held from the start, or every
# new environment would first get the newest one (and a newer numpy) and then step back.
CONSTRAINTS = ('opencv-python<4.13', 'opencv-python-headless<4.13')

# onedl-mmcv is compiled with these, outside pip's build isolation, because it needs our torch.
BUILD_TOOLS = ('pip>=23.0', 'setuptools>=70,<85', 'wheel', 'packaging', 'ninja')

PROJECT_EXTRAS = 'demo,docs,language,onnx,report,test'

# GiB. With a CPU torch the finished environment takes 2.0.
FREE_FOR_ALL = 3.0
FREE_AFTER_TORCH = 1.0
FREE_FOR_TMP = 1.0
FREE_FOR_CUDA_TORCH = 10.0
