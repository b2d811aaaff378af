"""Training of the transfer network (`train transfer`; paper 3.2), its synthetic people, and its ablation."""
