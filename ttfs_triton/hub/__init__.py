"""Publishing on the Hugging Face Hub: what is known about a model, its card, and the upload."""
