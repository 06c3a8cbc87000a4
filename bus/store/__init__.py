"""Where the bytes are kept: one protocol in :mod:`bus.store.base`, and the stores that fulfil it."""
