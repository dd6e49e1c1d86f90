"""What every stage may use: the append-only ledger, the errors that no retry mends, the meter of energy."""
