"""What executes a model: torch, torch.compile, ONNX Runtime, OpenVINO.

`registry` has the table of them; nothing of a runtime is imported before it is used.
"""
