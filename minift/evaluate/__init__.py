"""How good a model is: loss per token (perplexity.py) and the texts it writes (generation.py)."""
