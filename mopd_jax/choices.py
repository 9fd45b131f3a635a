"""Names that a setting and an argument share; imports only typing."""

from typing import Literal

# How token losses become one number: `losses.token_weights`.
Aggregation = Literal[
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-step-mean",
]
