"""The tests; a package, so that `tests/bus` does not hide `bus`."""
