# What every quantization config shares: the Runner that quantizes the model before it is tested
# by upstream's tools (`mmbitsplit quantize` does it by itself), and the options at their usual
# values; what is not named is as the method has it (`mode` of the activations, for one). The files
# beside this one add the calibration for their task.
#
# mmengine wants every top-level key in one base only. Neither of these two is in upstream's
# configs, so this stands beside any of them, whatever hooks and imports they have.
runner_type = 'mmbitsplit.QuantizationRunner'

quantization = dict(
    weight=dict(num_bits=8),
    activation=dict(num_bits=8),
    method=dict(type='BitSplit'),
    overrides=[])
