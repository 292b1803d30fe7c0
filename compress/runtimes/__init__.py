"""What executes a model: torch, torch.compile, ONNX Runtime, OpenVINO, ExecuTorch, TensorRT.

`registry` has the table of them; nothing of a runtime is imported before it is used.
"""
