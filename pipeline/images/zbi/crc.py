"""CRC-32 of data in two parts, of which the second is checksummed first: Python's zlib has no crc32_combine.

A CRC is the remainder of a polynomial over GF(2), with the bits of a number in reverse: to append n zero bits is to
multiply by x to the power of n. Source: zlib's crc32.c.
"""

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
_X = 1 << 30


def combined(first: int, second: int, size: int) -> int:
    """The CRC of two parts together, from the CRC of each. The second part has `size` bytes."""
    return _product(_power_of_x(8 * size), first) ^ second


def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _X
    while exponent:
        if exponent & 1:
            power = _product(square, power)
        square = _product(square, square)
        exponent >>= 1
    return power


def _product(left: int, right: int) -> int:
    product = 0
    for place in range(31, -1, -1):
        if left >> place & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
