"""Texts as the model's token ids and back; and the sentence for those who ask for embeddings."""
