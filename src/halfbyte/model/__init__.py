"""Bases, quantization, adapters, fast paths, memory arithmetic: everything that holds weights."""
