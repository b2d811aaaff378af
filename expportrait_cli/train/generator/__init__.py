"""Training of the paper's generator (`train generator`; paper 3.3, Eq. 10)."""
