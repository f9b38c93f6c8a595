"""Chapter 11: 32 numbers as a Q8_0 block. Check yours with `python -m book.check 11`."""


def quantize8(block):
    """A Q8_0 block, as bytes: the scale as float16, then 32 signed bytes.

    block: float32 tensor [32], not all zero. The scale is max |w| / 127.
    The bytes are w divided by the scale, after the scale's own rounding to
    float16, and rounded.
    """
    raise NotImplementedError
