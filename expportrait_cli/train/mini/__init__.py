"""Training of the small painting network (`train mini`), and the check that it must pass (`train gate`)."""
