"""What good data is: one suite of expectations a source table, per use case."""
