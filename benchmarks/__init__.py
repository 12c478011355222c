"""Speed, memory and work of the joint step beside its PyTorch reference: `python -m benchmarks`; see RESULTS.md."""
