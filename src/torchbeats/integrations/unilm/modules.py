"""The small parts, under the name of the research code's file."""

from torchbeats.layers import (
    GLU_Linear,
    GradMultiply,
    SamePad,
    Swish,
    gelu,
    gelu_accurate,
    get_activation_fn,
    quant_noise,
)

__all__ = [
    "GLU_Linear",
    "GradMultiply",
    "SamePad",
    "Swish",
    "gelu",
    "gelu_accurate",
    "get_activation_fn",
    "quant_noise",
]
