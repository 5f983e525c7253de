"""Measuring a served model on benchmarks: `trajlake eval`.

    command.py    the command: one subcommand a benchmark
    scores.py     how answers are scored
    overlap.py    whether what is measured with is in what is trained on
    bfcl.py       BFCL, by its own program
    results.py    the table `measured_results`

What a model does here is no raw record: it would bring a benchmark's questions into training.
"""
