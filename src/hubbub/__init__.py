"""Hubbub: a real-time server and toolkit for FastAPI."""
