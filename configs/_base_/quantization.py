# What every quantization config shares: the hook that quantizes the model before it is tested, and
# the options at their usual values; what is not named is as the method has it (`mode` of the
# activations, for one). The files beside this one add the calibration for their task.
#
# mmengine merges dictionaries key by key but replaces lists whole, and wants every top-level key in
# one base only. To add this to a config that has custom hooks or imports of its own, join the
# lists there:
#   custom_hooks = [dict(type='MyHook'), dict(type='mmbitsplit.QuantizationHook')]
custom_imports = dict(imports=['mmbitsplit.engine'], allow_failed_imports=False)
custom_hooks = [dict(type='mmbitsplit.QuantizationHook')]

quantization = dict(
    weight=dict(num_bits=8),
    activation=dict(num_bits=8),
    method=dict(type='BitSplit'),
    overrides=[])
