"""The papers' numbers as data, our records, and what compares the two: verdicts, tables, the report."""
