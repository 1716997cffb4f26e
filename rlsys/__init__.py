"""rlsys: post-training of language models on Ray, from SFT to reinforcement learning with verifiable rewards."""

__version__ = "0.1.0"
