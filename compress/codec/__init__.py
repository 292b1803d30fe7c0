"""The coded model file: exact to the bit, near or below the entropy of the shared values."""

from compress.codec.file import Coded, CodedSize, decode, decode_weights, encode

__all__ = ["Coded", "CodedSize", "decode", "decode_weights", "encode"]
