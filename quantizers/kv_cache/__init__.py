"""Codecs of the cache of keys and values: integer kernels that the hardware is checked against, bit for bit.

Keys and values enter as 16-bit signed integers; everything from there on is integer arithmetic in numpy.
"""
