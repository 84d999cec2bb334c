"""Judges searches by labelled questions: how well the rows that answer a question rank."""
