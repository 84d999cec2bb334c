"""What a token costs at list price, so that a plan can say it before it is spent."""

from __future__ import annotations

# US dollars per million tokens, https://platform.openai.com/docs/pricing (standard tier; the Batch API costs half).
_LIST_PRICES = {
    "text-embedding-3-small": 0.02,
    "text-embedding-3-large": 0.13,
    "text-embedding-ada-002": 0.10,
}

# What the Batch API costs of the price, the pipeline's own or the list's.
BATCH_SHARE = 0.5


def cost_per_million_tokens(model: str, own_price: float | None) -> float:
    """US dollars; the pipeline's own price first, then the list's, and 0 for a model whose price nobody told us."""
    return own_price if own_price is not None else _LIST_PRICES.get(model, 0.0)
