"""What others read of a campaign, or of crashes of any kind: documents in the formats of their tools.

`reported` has the values that each document is made from. `sarif` is for code scanning and editors, `junit` for what
shows test results; `code_scanning` says what GitHub would not take of a SARIF document. `matrix` has what is known of
each bucket with each build, `check` compares builds by it, and `whole` has all that a campaign tells, as report.json.
Nothing here writes, and only `matrix` reads. This package imports nothing of the rest of a campaign, but fuzz and what
is below it.
"""
