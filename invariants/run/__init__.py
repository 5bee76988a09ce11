"""Checks of any run, from its log and what was declared of it: pure functions, no file is read and no torch needed."""
