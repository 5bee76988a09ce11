"""Guards as callbacks: `callbacks.huggingface` for Trainer, `callbacks.lightning` for Lightning. Each needs its package."""
