"""Data that earlier programs have made, one archive per state of the ledger's schema: what makes and loads it."""
