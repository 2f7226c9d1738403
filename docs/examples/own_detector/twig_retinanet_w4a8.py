"""The same, quantized."""

_base_ = './twig_retinanet.py'

# Lists are replaced whole: your import stands beside ours, your hooks would beside this hook.
custom_imports = dict(imports=['twig_net', 'mmbitsplit.engine'], allow_failed_imports=False)
custom_hooks = [dict(type='mmbitsplit.QuantizationHook')]

load_from = 'work_dirs/twig/twig.pth'

quantization = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=8),
    calibration=dict(num_images=128))
