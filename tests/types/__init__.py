"""Programs that are never run: mypy and pyright check the public API's types on them (``tests/test_types.py``)."""
