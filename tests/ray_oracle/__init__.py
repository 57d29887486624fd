"""Ray 2.60's own classes beside the ports: the same random states to both, and what they decide.

One module per class of Ray. Each comparison takes the number of states and a seed and returns a ``Tally``; tests run
it with few states, ``benchmarks/ray_differential.py`` with many. Ray reads ``time`` and iterates over Python sets,
whose order differs from process to process: the modules here hand it a clock, and sets that keep an order.
"""
