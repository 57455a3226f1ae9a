"""The contestants of `benchmarks/step_time.py`: how each is started, and how its numbers are read.

`trl_grpo.py` and `ours_grpo.py` both offer `command(...)`, what to run as a process of its own, and `read_record(...)`,
what that process measured, in the common form of `records.py`. `workloads.py` is what both work on.
"""
