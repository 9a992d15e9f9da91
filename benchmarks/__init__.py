"""What one summary costs, against peers, in one run: ``python -m benchmarks`` from the repository root.

networks (what is differentiated) and peers (who differentiates) -> measure (one number, in a process of its own) ->
agreement, work, memory, growth (one section each) -> report (tables and figures).
"""
