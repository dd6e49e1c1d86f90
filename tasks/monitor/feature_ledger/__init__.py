"""The ledger of served features: what answers in time used beside what batch works out, and why it differs."""
