"""Models as ONNX graphs: written, exported, and run by ONNX Runtime."""
