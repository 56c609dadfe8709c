"""How the peers are run and how their figures become a table."""
