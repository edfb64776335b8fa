"""sti_hf inside the Hugging Face libraries."""
