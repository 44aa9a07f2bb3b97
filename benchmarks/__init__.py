"""Side-by-side measurements. Ratios within one run; never part of the tests."""
