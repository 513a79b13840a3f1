"""Benchmarks of the service: start-up, overhead, memory."""
