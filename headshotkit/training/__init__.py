"""Train the LoRA, and save it."""
