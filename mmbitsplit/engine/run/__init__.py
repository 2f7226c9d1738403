"""What mmengine's Runner needs to quantize: data, weights, processes."""
