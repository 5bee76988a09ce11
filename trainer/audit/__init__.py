"""`trainer audit LOG`: judges a finished run from its log alone."""
