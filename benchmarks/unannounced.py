"""The decode of ``mammoray.decode`` in a module that wants no announcements: files are fetched one after the other."""

from mammoray.decode import decode, warm_up

__all__ = ["decode", "warm_up"]
