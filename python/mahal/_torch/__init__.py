"""The ops inside torch: gradients, torch.compile and torch.func. Imported on first use only."""
