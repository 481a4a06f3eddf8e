"""The paper's figures and its headline number, run and drawn by one command each."""
