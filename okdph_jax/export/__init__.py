"""A trained network as files for other runtimes: StableHLO, ONNX, TFLite, and its weights."""
