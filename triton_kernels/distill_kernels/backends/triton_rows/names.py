"""The words of spec.py and the bounds of divergences.py, as a kernel can read them.

A kernel is compiled for a word as it is for a number. A name that is misspelt in a kernel does not
compile, where a string that is misspelt would be one more word that nothing equals.
"""

import triton.language as tl

from distill_kernels import divergences

TAIL_BUCKET = tl.constexpr("tail_bucket")
RENORMALIZE = tl.constexpr("renormalize")
SAMPLED = tl.constexpr("sampled")

FORWARD_KL = tl.constexpr("forward_kl")
REVERSE_KL = tl.constexpr("reverse_kl")
JSD = tl.constexpr("jsd")
SKEW_FORWARD_KL = tl.constexpr("skew_forward_kl")
SKEW_REVERSE_KL = tl.constexpr("skew_reverse_kl")
TVD = tl.constexpr("tvd")
ADAPTIVE_KL = tl.constexpr("adaptive_kl")

EMPTY = tl.constexpr(divergences.EMPTY)
MIN_LOGPROB = tl.constexpr(divergences.MIN_LOGPROB)
LARGE_RATIO = tl.constexpr(divergences.LARGE_RATIO)
SMALL_RATIO = tl.constexpr(divergences.SMALL_RATIO)
