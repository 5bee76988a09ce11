"""The claims ledger: what the source documents say, one record per claim, and the functions that decide each."""
