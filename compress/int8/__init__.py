"""Models that a runtime computes in 8-bit integers: calibrated, or trained with their rounding."""
