"""What hostile peers do to a real server in its own process, and what everybody else feels of it."""
