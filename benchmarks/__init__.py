"""Benchmarks of fused_attention: cases, interleaved timing, peak memory, tables and pictures.

Installed as fused_attention.benchmarks. README.md beside this file holds the protocol.
"""
