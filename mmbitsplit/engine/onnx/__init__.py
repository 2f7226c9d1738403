"""Export and evaluation of ONNX graphs with the data of a config."""
