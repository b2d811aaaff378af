"""Training of the paper's generator, or of a LoRA for VACE (`train generator`; paper 3.3, Eq. 10)."""
