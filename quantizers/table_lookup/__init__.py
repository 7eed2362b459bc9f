"""Matrix-vector products by table lookup (T-MAC, arXiv 2407.00088; ternary: bitnet.cpp, arXiv 2502.11880).

The software reference of the hardware engine: bit planes and lookup indices (`planes`), the product
itself (`gemv`), and group-wise weights with scales and their byte format (`weights`). Nothing here
imports torch, so the hardware's reference models may use it.
"""
