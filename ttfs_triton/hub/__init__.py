"""Publishing on the Hugging Face Hub: facts about a model, its card, and the upload."""
