"""Every discovery algorithm on every case: `python -m benchmarks.discovery`. See docs/which-algorithm.md."""
