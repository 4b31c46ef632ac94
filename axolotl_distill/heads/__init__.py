"""Output heads of causal language models: how hidden states become logits."""
