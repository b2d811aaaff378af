"""Training of the small painter (`train mini`), and its gate."""
