"""Weights in 4 and 8 bits, and the linears that hold them.

    tensor.py     quantize and dequantize: nf4, fp4, int8, int4
    blocks.py     NF4 and FP4: blocks of 64 with one scale          nested.py   that scale in 8 bits too ("double quantization")
    int8.py       whole numbers, one scale per row                  int4.py     whole numbers with scale and zero point per group
    linear.py     Linear4bit and Linear8bit: linears whose weight is computed when it is asked for
    model.py      all linears of a model                            gptq.py, awq.py     int4 with a look at what the linears read"""

from minift.quant.linear import Linear4bit, Linear8bit, QuantizedLinear
from minift.quant.model import dequantize_model, quantize_model
from minift.quant.tensor import Quantized, Scheme, dequantize, nbytes, quantize

__all__ = [
    "Linear4bit", "Linear8bit", "Quantized", "QuantizedLinear", "Scheme", "dequantize", "dequantize_model", "nbytes", "quantize", "quantize_model",
]  # fmt: skip
