"""Model: a name -> weights, tokenizer and adapter."""
