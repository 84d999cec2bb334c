"""List prices of tokens, so that a plan can show the cost before the money is spent."""

from __future__ import annotations

# US dollars per million tokens, https://platform.openai.com/docs/pricing (standard tier; the Batch API costs half).
_LIST_PRICES = {
    "text-embedding-3-small": 0.02,
    "text-embedding-3-large": 0.13,
    "text-embedding-ada-002": 0.10,
}

# The Batch API costs this share of the price, the pipeline's own or the list price.
BATCH_SHARE = 0.5


def cost_per_million_tokens(model: str, own_price: float | None) -> float:
    """US dollars: the pipeline's own price, or else the list price, or else 0 because the price is unknown."""
    return own_price if own_price is not None else _LIST_PRICES.get(model, 0.0)
