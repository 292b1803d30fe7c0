"""What the stage `int8` reports of its work."""

from compress.metrics import Metric

METRICS = (
    Metric("int8_layers", "layers whose weights are integers", "1"),
    Metric(
        "int8_float_layers",
        "layers that are computed in float, some of them with integers as weights",
        "1",
    ),
    Metric(
        "int8_four_bit_fraction",
        "share of integer weights that have 4 bits",
        "fraction",
    ),
    Metric(
        "int8_changed_fraction",
        "calibration images whose first choice is not the float model's, before training",
        "fraction",
    ),
    Metric(
        "int8_logit_error",
        "root mean square error of the logits over their own root mean square, on"
        " calibration images, before training",
        "1",
    ),
    Metric(
        "int8_max_changed_met",
        "1 where the layers left in float meet max_changed, 0 where no choice of them does",
        "1",
    ),
)
