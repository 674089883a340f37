"""Argilla without Docker: the stock server in a private environment, searching its own SQLite tables."""
