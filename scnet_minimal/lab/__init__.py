"""What the notebooks stand on; nobody needs it to use SCNet."""
