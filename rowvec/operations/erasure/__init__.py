"""Erasure: removes the traces of deleted rows from the store and the database, and certifies it."""
