"""What the project claims to conform to, and the programs that check it; not part of the package."""
