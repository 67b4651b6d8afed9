"""The simulator: traces, replayed against the scheduler's own scripts in simulated time (docs/simulator.md)."""
