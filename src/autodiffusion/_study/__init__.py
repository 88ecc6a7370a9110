"""The study: a search on disk. Its settings, its ledger, and what the ledger adds up to."""
