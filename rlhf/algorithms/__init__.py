"""The mathematics of the trainers: pure functions of tensors. No I/O, no engines, no processes."""
